"""Conformance of steps: with the draw and the noise recorded, what is released can be computed outside, and is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dptrain.conformance.recorder import Watched, watch
from dptrain.conformance.stand import RATE, Result, Stand
from dptrain.errors import ClaimRejected

SMALL = 8
"""Rows of a physical batch, so that draws need several."""


def script(stand: Stand, steps: int) -> list[Tensor]:
    """Draws that a mistake shows in: none, all, one, the same again, and random ones of all sizes."""
    generator = torch.Generator().manual_seed(3)
    units = torch.arange(stand.rows.num_units)
    made = [units[:0], units, units[:1], units[-1:], units[::2], units[::2], units[1::2], units[:0]]
    while len(made) < steps:
        share = len(made) / steps
        made.append(units[torch.rand(len(units), generator=generator) < share])
    return made[:steps]


def recorded_steps(stand: Stand) -> Iterator[Result]:
    """Two runs: with the plan's own sampler, and with draws from a script, one unit of which is not a number."""
    count = stand.plan.steps
    own = watch(stand, stand.trainer(SMALL, count), stand.all_rows())
    rows = stand.rows
    if stand.is_real:
        inputs = rows.inputs.clone()
        inputs[rows.unit_id == 5] = float("nan")
        rows = replace(rows, inputs=inputs)
    draws = script(stand, count)
    given = watch(stand, stand.trainer(SMALL, count, rows=rows), stand.all_rows(rows), lambda step: draws[step % count])
    yield events("order of events", [own, given], count)
    yield given_to_optimizer([own, given])
    yield learning_rates([own, given])
    yield replay("replay, own draws", stand, own)
    yield replay("replay, given draws", stand, given)
    yield rounding(stand, [*own, *given])


def events(name: str, runs: Sequence[Sequence[Watched]], planned: int) -> Result:
    """Every step: one draw, its intent, one noise vector, one call of the optimizer, in this order; units once."""
    for run in runs:
        for number, step in enumerate(run, start=1):
            wanted = ["draw", f"intent {number}", "noise", "optimizer"]
            if step.events != wanted:
                return Result(name, False, f"step {number}: {', '.join(step.events)}", number)
            if len(torch.unique(step.draw)) != len(step.draw):
                return Result(name, False, f"step {number}: a unit is drawn twice in one draw", number)
        if len(run) != planned:
            return Result(name, False, f"{len(run)} steps are taken where {planned} are planned", planned)
    return Result(name, True, f"draw, intent, noise, optimizer: once each in {planned} steps, empty draws too")


def given_to_optimizer(runs: Sequence[Sequence[Watched]]) -> Result:
    """The model moves in the optimizer alone, which is given finite gradients."""
    for run in runs:
        for number, (step, following) in enumerate(zip(run, [*run[1:], None], strict=True), start=1):
            if not all(bool(g.isfinite().all()) for g in step.released):
                return Result("optimizer", False, f"step {number}: a released gradient is not finite", number)
            if step.fixed_after is None or not torch.equal(step.fixed, step.fixed_after):
                return Result("optimizer", False, f"step {number}: a frozen parameter or a buffer moved", number)
            if not step.trains:
                return Result("optimizer", False, f"step {number}: the model is not in training mode", number)
            if following is not None and (step.ends_at is None or not torch.equal(step.ends_at, following.begins_at)):
                return Result("optimizer", False, f"step {number}: parameters moved outside of it", number)
    return Result("optimizer", True, "parameters move in it alone, and what it is given is finite")


def learning_rates(runs: Sequence[Sequence[Watched]]) -> Result:
    """The optimizer has the same learning rates at every step: the checks' schedule is constant, whatever the rows."""
    first = runs[0][0].rates
    for run in runs:
        for number, step in enumerate(run, start=1):
            if not step.rates or step.rates != first:
                says = f"step {number}: {step.rates} where the schedule says {first}"
                return Result("learning rates", False, says, number)
    return Result("learning rates", True, f"{first[0]:g} at every step, whatever the rows")


def residual(stand: Stand, step: Watched) -> tuple[float, float]:
    """Released gradient times divisor, less noise, less exact sum: its norm, and what rounding allows, both over C."""
    if len(step.noise) != 1 or len(step.released) != 1:
        return math.inf, 0.0
    left = step.released[0] - step.noise[0] - step.exact
    units = len(torch.unique(step.draw))
    per_unit = stand.unit_tolerance + (stand.slack / 4 if stand.plan.noise == "secure" else 0.0)
    grid = stand.slack / 4 if stand.plan.noise == "secure" else 0.0
    storage = 5e-7 * float(step.released[0].norm()) / stand.clip
    size = float(left.norm()) / stand.clip
    return (size if math.isfinite(size) else math.inf), units * per_unit + grid + storage


def replay(name: str, stand: Stand, steps: Sequence[Watched]) -> Result:
    """(exact clipped sum of the draw + recorded noise) / public divisor is what the optimizer gets."""
    worst = (0.0, 0.0)
    for number, step in enumerate(steps, start=1):
        size, allowed = residual(stand, step)
        if size > allowed:
            says = f"step {number}, {len(step.draw)} units: released is {size:.2g} C from (sum + noise) / divisor"
            return Result(name, False, f"{says} (tolerance {allowed:.1e})", number)
        worst = max(worst, (size, allowed))
    units = [len(step.draw) for step in steps]
    says = f"{len(steps)} steps of {min(units)} to {max(units)} units: at most {worst[0]:.1e} C from (sum + noise) /"
    return Result(name, True, f"{says} divisor (tolerance {worst[1]:.1e})")


def rounding(stand: Stand, steps: Sequence[Watched]) -> Result:
    """On a grid, what is released is whole grid steps; sums are rounded to the nearest."""
    trainer = stand.trainer(SMALL, 1)
    if trainer.grid is None:
        return Result("released grid", None, f"privacy.noise={stand.plan.noise} has no grid")
    if stand.mechanism.noise_std / trainer.grid > 2.0**20:
        return Result("released grid", None, "float32 gradients cannot show steps as fine as these")
    far = bias = 0.0
    for step in steps:
        if len(step.released) != 1 or len(step.noise) != 1:
            return Result("released grid", False, "a step without one noise and one release")
        whole = step.released[0] / trainer.grid
        far = max(far, float((whole - whole.round()).abs().mean()))
        units = max(1, len(step.draw))
        left = (step.released[0] - step.noise[0] - step.exact) / trainer.grid
        bias = max(bias, abs(float(left.mean())) * math.sqrt(stand.count / units))
    limit = 6.5 / math.sqrt(12.0) + 1.0
    says = (
        f"values are {far:.3f} steps from whole ones on average (limit 0.12), biased by {bias:.2f} (limit {limit:.2f})"
    )
    return Result("released grid", far <= 0.12 and bias <= limit, says)


def selfchecked_run(stand: Stand, steps: int) -> Result:
    """A run with ``selfcheck=on`` comes to its end."""
    if steps == 0:
        return Result("self-check", None, "conform.selfcheck_steps=0")
    trainer = stand.trainer(SMALL * 4, steps, selfcheck=True)
    try:
        trainer.run(lambda *_: None)
    except ClaimRejected as error:
        step = trainer.selfcheck.accusation.step if trainer.selfcheck and trainer.selfcheck.accusation else None
        return Result("self-check", False, str(error), step)
    return Result("self-check", True, f"{steps} steps at rate {RATE:g} with sentinels: not accused")
