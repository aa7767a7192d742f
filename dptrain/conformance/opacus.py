"""The same questions put to plain Opacus: is what it releases (clipped sum of one Poisson draw + noise) / divisor?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor

from dptrain.config_conform import ConformConfig
from dptrain.conformance.stand import RATE, Result, Stand
from dptrain.gradients.opacus_pipeline import OpacusRun, OpacusStep
from dptrain.gradients.protocol import trainable
from dptrain.gradients.recompute import recompute

TOLERANCE = 1e-3
"""Of a replayed sum, a unit, over C: Opacus adds 1e-6 to norms and sums in float32."""


def opacus_checks(stand: Stand, config: ConformConfig) -> Iterator[Result]:
    """One line each; every row is a unit, on a CPU, with the stand's model, C and noise multiplier."""
    rows = len(stand.rows)
    stand.module.cpu()
    batch = round(rows * RATE)

    def begin(poisson: bool = True, inputs: Tensor | None = None, units: int = rows) -> OpacusRun:
        given = stand.rows.inputs if inputs is None else inputs
        norm, noise = stand.clip, stand.mechanism.noise_multiplier
        return OpacusRun(
            stand.module, stand.row_loss, given[:units], stand.rows.targets[:units], batch, norm, noise, poisson
        )

    yield _plain(stand, begin, config.conform.steps)
    yield _noise(stand, begin, config.conform.noise_samples)
    yield _physical(stand, begin)
    yield _left_epoch(stand, begin)
    yield _empty_draws(begin)
    yield _public_constants(begin, rows)
    yield _shuffled(begin)
    yield _fresh_noise(begin)
    yield _bad_row(stand, begin)
    yield _epochs()


Begin = Callable[..., OpacusRun]


def _off(stand: Stand, step: OpacusStep, inputs: Tensor | None = None) -> float:
    """Distance of a step's sum from the exact clipped sum of the latest draw, over C."""
    module = deepcopy(stand.module)
    with torch.no_grad():
        for parameter, value in zip(trainable(module).values(), step.parameters, strict=True):
            parameter.copy_(value)
    rows = stand.rows if inputs is None else stand.rows.__class__(inputs, stand.rows.targets, stand.rows.unit_id)
    alone = rows.__class__(rows.inputs, rows.targets)  # each row its own unit
    drawn = torch.tensor(sorted(step.announced[-1] if step.announced else []), dtype=torch.int64)
    exact = recompute(module, stand.row_loss, stand.all_rows(alone), drawn, stand.clip).clipped_sum
    distance = float((step.summed - exact).norm()) / stand.clip
    return distance if math.isfinite(distance) else math.inf


def _plain(stand: Stand, begin: Begin, steps: int) -> Result:
    run = begin()
    while len(run.announced) < steps:
        run.epoch()
    worst = max(_off(stand, step) / max(1, len(step.announced[-1])) for step in run.steps if step.announced)
    says = f"{len(run.steps)} steps without physical batches: sums off by {worst:.1e} C a unit (tolerance"
    return Result("replay", worst <= TOLERANCE, f"{says} {TOLERANCE:.0e})")


def _noise(stand: Stand, begin: Begin, samples: int) -> Result:
    from scipy.stats import chi2

    run, values = begin(), np.empty(0)
    while len(values) < samples:
        run.epoch()
        values = np.concatenate([(s.released - s.summed).numpy() for s in run.steps])
    # Opacus prices the noise over C, without a slack for arithmetic.
    values = values / (stand.mechanism.noise_multiplier * stand.clip)
    squares, n = float((values**2).sum()), len(values)
    p = 2 * min(chi2.cdf(squares, n), chi2.sf(squares, n))
    says = f"{math.sqrt(squares / n):.4f} of the planned deviation, {n} samples (chi-square p {p:.2g}, at least 1e-07)"
    return Result("noise, deviation", bool(p >= 1e-7), says)


def _physical(stand: Stand, begin: Begin) -> Result:
    run = begin()
    try:
        for _ in range(3):
            run.epoch(largest=3)
    except ValueError as error:
        return Result("physical batches", False, f"BatchMemoryManager(3), a draw of nobody: ValueError: {error}")
    worst, allowed = _worst(stand, run)
    says = f"BatchMemoryManager(3), whole epochs: {len(run.steps)} steps for {len(run.announced)} draws, off by"
    return Result("physical batches", worst <= allowed, f"{says} {worst:.2g} C (tolerance {allowed:.1g})")


def _left_epoch(stand: Stand, begin: Begin) -> Result:
    """Leaves an epoch with ``break`` in the middle of a draw, as early stopping or a step limit does."""
    for _ in range(20):
        run = begin()
        try:
            run.epoch(largest=3, stop_after=1)
            if len(run.steps) == 1:
                continue  # the draw was small enough for one physical batch
            run.epoch(largest=3)
        except ValueError:
            continue  # a draw of nobody
        first = run.steps[0]
        merged = sorted(set(first.announced[-2]) & set(first.announced[-1])) if len(first.announced) > 1 else []
        worst = _off(stand, first)
        allowed = TOLERANCE * stand.rows.inputs.shape[0]
        says = (
            f"epoch left after 1 of the physical batches of a draw, then another: the first step's sum is {worst:.2f}"
        )
        says += f" C from its draw's (tolerance {allowed:.1g}): {len(first.announced)} draws under one noise vector,"
        says += f" {len(merged)} rows in both; {run.accounted} steps charged for {len(run.announced)} draws"
        return Result("draws apart", worst <= allowed, says, 1)
    return Result("draws apart", None, "no draw of more than one physical batch came up")


def _worst(stand: Stand, run: OpacusRun) -> tuple[float, float]:
    worst = max((_off(stand, step) for step in run.steps), default=0.0)
    return worst, TOLERANCE * len(stand.rows)


def _empty_draws(begin: Begin) -> Result:
    """Draws so small that a third of them are empty: is every one a step, released and charged?"""
    outcomes: list[str] = []
    good = True
    for largest in (None, 8):
        name = "plain loop" if largest is None else "BatchMemoryManager"
        torch.manual_seed(0)
        run = begin(units=4)
        run.loader.batch_sampler.sample_rate = 0.25
        try:
            for _ in range(8):
                run.epoch(largest=largest)
        except Exception as error:  # any: what comes of an empty draw is the question
            outcomes.append(f"{name}: {type(error).__name__} after {len(run.announced)} draws, {len(run.steps)} steps")
            good = False
            continue
        empty = sum(not draw for draw in run.announced)
        outcomes.append(f"{name}: {empty} of {len(run.announced)} draws empty, {len(run.steps)} steps")
        good &= len(run.steps) == len(run.announced) == run.accounted
    return Result("empty draws", good, "; ".join(outcomes))


def _public_constants(begin: Begin, rows: int) -> Result:
    """The rate and the divisor of two data sets that differ in one row."""
    pairs = [(run.rate, run.divisor) for run in (begin(units=rows), begin(units=rows - 1), begin(units=rows - 2))]
    shown = "; ".join(f"q {rate:.4f}, divisor {divisor:g}" for rate, divisor in pairs)
    says = f"{rows}, {rows - 1} and {rows - 2} rows, the same batch_size: {shown}: they must not depend on the rows"
    return Result("public constants", len(set(pairs)) == 1, says)


def _shuffled(begin: Begin) -> Result:
    """Two epochs each of Poisson draws and of shuffled batches: whether the accountant tells them apart."""
    epsilons = []
    for poisson in (True, False):
        run = begin(poisson)
        for _ in range(2):
            run.epoch()
        epsilons.append(run.epsilon(1e-5))
    says = f"{run.accounted} steps: epsilon {epsilons[0]:.4f} with poisson_sampling=True, {epsilons[1]:.4f} with False"
    return Result("sampling is priced", epsilons[1] > epsilons[0], says)


def _fresh_noise(begin: Begin) -> Result:
    noises = []
    for _ in range(2):
        torch.manual_seed(0)
        run = begin()
        run.epoch()
        noises.append(run.steps[0].released - run.steps[0].summed)
    differ = float((noises[0] - noises[1]).abs().max())
    # The difference of two float32 numbers: equal noise may differ in the last digits.
    return Result("noise, fresh", differ > 1e-3, f"two runs after the same torch seed: noise differs by {differ:.1e}")


def _bad_row(stand: Stand, begin: Begin) -> Result:
    if not stand.is_real:
        return Result("bad rows", None, "rows are tokens, which cannot be undefined")
    inputs = stand.rows.inputs.clone()
    inputs[5:8] = float("nan")
    run = begin(inputs=inputs)
    for _ in range(3):
        run.epoch()
    bad = [i for i, s in enumerate(run.steps, start=1) if not bool(s.released.isfinite().all())]
    says = f"{len(bad)} of {len(run.steps)} released gradients are not finite; {run.accounted} steps charged"
    return Result("bad rows", not bad, says, bad[0] if bad else None)


def _epochs() -> Result:
    """Steps of an epoch of n draws at rate 1/n, as the library's sampler counts them."""
    lost = [n for n in range(1, 2000) if int(1 / (1 / n)) != n]
    return Result("epoch length", not lost, f"int(1 / (1 / n)) is not n for {len(lost)} of n < 2,000: a step is lost")
