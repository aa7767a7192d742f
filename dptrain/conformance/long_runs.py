"""What a hundred steps and more show: one release a draw and an intent, nothing by another road, noise as planned."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from dptrain.config import OptimizerConfig
from dptrain.conformance.draws_beside import draws_beside_units
from dptrain.conformance.observe import NOISE, least_bytes
from dptrain.conformance.regular import Law, chi_square, least, normal, regularity
from dptrain.conformance.small_run import UNITS, SmallRun, small_run
from dptrain.conformance.stand import RATE, Result, Stand
from dptrain.errors import one_line
from dptrain.keystream import Purpose

LONG, SHORT, SPARSE = 104, 8, 72
"""Steps of the long run, of those that differ in their settings, and of one whose draws hold a unit or none, so that
noise is longer than sums, and what waits for that comes up."""
ALPHA = 1e-7
"""False-alarm rate of each law."""
SHARE = 2e-4
"""Of a sum or of noise, that may be left in what a release is off by, beside what rounding explains."""
ROUNDING = 6.0
"""Deviations of that share which rounding explains: a draw's roundings are independent of sum and noise."""

MOMENTUM = OptimizerConfig(
    name="sgd", lr=0.02, options={"momentum": 0.9, "weight_decay": 0.01}, schedule="cosine", warmup_steps=5, ema=0.9
)
OTHERS = {
    "adamw": OptimizerConfig(name="adamw", lr=0.01, options={"weight_decay": 0.1}, schedule="linear", ema=0.5),
    "rmsprop": OptimizerConfig(
        name="rmsprop", lr=0.005, options={"momentum": 0.5, "centered": True}, warmup_steps=3, ema=0.99
    ),
}


def long_runs(stand: Stand) -> Iterator[Result]:
    """A long run with momentum and an average, and short ones under other settings: the user's own among them."""
    rate = 0.004 * RATE * UNITS / stand.mechanism.noise_std
    long = small_run(stand, LONG, replace(MOMENTUM, lr=rate), size=32)
    runs, fell = {"sgd": long}, list[str]()
    for number, (name, config) in enumerate(OTHERS.items()):
        fell += _further(runs, stand, name, config, size=(3, 64)[number], ahead=number > 0)
    fell += _further(runs, stand, "the run's own", _tame(stand), size=32, selfcheck=True)
    quiet = replace(MOMENTUM, lr=0.004 / stand.mechanism.noise_std)
    fell += _further(runs, stand, "one unit a draw", quiet, planned=SPARSE, size=32, q=1.0 / UNITS)
    says = "; ".join(fell) or f"runs of {', '.join(runs)} come to their ends"
    yield Result("short runs", not fell, says)
    yield one_release(runs)
    yield addressed_once(runs)
    yield by_releases_alone(runs)
    yield nothing_beside(stand, runs)
    yield noise_beside_units(long)
    yield draws_beside_units(long)


def _further(
    runs: dict[str, SmallRun], stand: Stand, name: str, config: OptimizerConfig, planned: int = SHORT, **how: Any
) -> list[str]:
    """Adds a short run; what it ended in, where it did not come to its end."""
    try:
        runs[name] = small_run(stand, planned, config, **how)
    except Exception as error:  # whatever it is, other runs are looked at
        return [one_line(f"{name} ends in {type(error).__name__}: {error}")[:120]]
    return []


def _tame(stand: Stand) -> OptimizerConfig:
    """The run's own optimizer, at a rate at which so small a model stays where float32 computes it well."""
    own, much = stand.config.optimizer, 0.004 * RATE * UNITS / stand.mechanism.noise_std
    return replace(own, lr=min(own.lr, 0.01, much), warmup_steps=min(own.warmup_steps, SHORT // 2))


def one_release(runs: dict[str, SmallRun]) -> Result:
    """Every step: one draw of units once each, its intent, one noise vector, one call of the optimizer."""
    name = "long run, events"
    for which, run in runs.items():
        for number, step in enumerate(run.steps, start=1):
            wanted = ["draw", f"intent {number}", "noise", "optimizer", "end"]
            if step.events != wanted:
                return Result(name, False, f"{which}, step {number}: {', '.join(step.events)}", number)
            if len(torch.unique(step.draw)) != len(step.draw):
                return Result(name, False, f"{which}, step {number}: a unit is drawn twice in one draw", number)
        if len(run.steps) != run.planned:
            says = f"{which}: {len(run.steps)} draws where {run.planned} steps are planned"
            return Result(name, False, says, min(len(run.steps), run.planned))
    total = sum(len(run.steps) for run in runs.values())
    return Result(name, True, f"one draw, intent, noise and release each in {total} steps of {len(runs)} runs")


def addressed_once(runs: dict[str, SmallRun]) -> Result:
    """Random bits: of one address for a draw and of one for its noise, in every step; no address of a key twice."""
    name = "long run, addresses"
    for which, run in runs.items():
        seen = Counter((one.keys, one.purpose, one.step) for one in run.loose)
        for number, step in enumerate(run.steps, start=1):
            kinds = Counter("noise" if one.purpose in NOISE else one.purpose.name for one in step.opened)
            if kinds["noise"] != 1 or kinds[Purpose.DRAW.name] != 1:
                says = f"{which}, step {number}: {kinds[Purpose.DRAW.name]} draws and {kinds['noise']} noise vectors"
                return Result(name, False, f"{says} are made of random bits", number)
            size, made = len(step.exact), [one for one in step.opened if one.purpose in NOISE]
            if any(sum(one.read) < least_bytes(one.purpose, size) for one in made):
                return Result(name, False, f"{which}, step {number}: too few random bits for its noise", number)
            seen.update((one.keys, one.purpose, one.step) for one in step.opened)
            twice = [key for key, times in seen.items() if times > 1]
            if twice:
                return Result(name, False, f"{which}, step {number}: {twice[0][1].name} of one step twice", number)
    return Result(name, True, "random bits of one address for each draw, of one for its noise; none is read twice")


def by_releases_alone(runs: dict[str, SmallRun]) -> Result:
    """Parameters, optimizer and average, after every step, are what another optimizer makes of the releases alone."""
    name = "post-processing"
    for which, run in runs.items():
        for number, step in enumerate(run.steps, start=1):
            if step.differs is not None:
                return Result(name, False, f"{which}, step {number}: {step.differs}", number)
        if run.wrong_end is not None:
            return Result(name, False, f"{which}: {run.wrong_end}")
    names = ", ".join(runs)
    return Result(name, True, f"parameters, optimizer states and averages follow from the releases alone ({names})")


def nothing_beside(stand: Stand, runs: dict[str, SmallRun]) -> Result:
    """What releases are off by holds no share of a sum or of noise, of the step's own or of the step before.

    The tolerance of one step must hold every unit's largest rounding error, which is a few thousandths of C. Rounding
    errors of many steps do not point along sums or noise, so that together they show a share of either that is far
    smaller.
    """
    name = "long run, replay"
    grid = stand.slack / 4 if stand.plan.noise == "secure" else 0.0
    off, told = dict[str, list[tuple[np.ndarray, np.ndarray]]](), 0.0
    for which, run in runs.items():
        for number, step in enumerate(run.steps, start=1):
            if len(step.noise) != 1 or len(step.released) != 1:
                return Result(name, False, f"{which}, step {number}: not one noise vector and one release", number)
            left = (step.released[0] - step.noise[0] - step.exact).numpy() / run.clip
            units = len(step.draw)
            allowed = units * (1e-4 + grid) + grid + 5e-7 * float(step.released[0].norm()) / run.clip
            size = float(np.linalg.norm(left))
            if not size <= allowed:
                says = f"{which}, step {number}, {units} units: released is {size:.2g} C from (sum + noise) / divisor"
                return Result(name, False, f"{says} (tolerance {allowed:.1e})", number)
            before = run.steps[number - 2] if number > 1 else None
            for of, vector in {
                "the sum": step.exact,
                "the noise": step.noise[0],
                "the sum before": None if before is None else before.exact,
                "the noise before": None if before is None else before.noise[0],
            }.items():
                if vector is not None:
                    off.setdefault(of, []).append((left, vector.numpy() / run.clip))
    worst = ""
    for of, pairs in off.items():
        power = sum(float(v @ v) for _, v in pairs)
        share = sum(float(r @ v) for r, v in pairs) / max(power, 1e-300)
        spread = math.sqrt(sum(float((r * v) @ (r * v)) for r, v in pairs)) / max(power, 1e-300)
        if not abs(share) <= SHARE + ROUNDING * spread:
            limit = SHARE + ROUNDING * spread
            return Result(name, False, f"{share:.1e} of {of} is in the releases beside them (tolerance {limit:.1e})")
        told = max(told, abs(share))
        worst = of if told == abs(share) else worst
    return Result(name, True, f"at most {told:.0e} of {worst} is in the releases beside (sum + noise) / divisor")


def noise_beside_units(run: SmallRun) -> Result:
    """What is released beside the exact sums of real draws is the planned noise, whatever was drawn."""
    from scipy.stats import chi2, norm

    blocks = np.stack(
        [(s.released[0] - s.exact).numpy() if s.released else s.exact.numpy() * np.nan for s in run.steps]
    )
    blocks = blocks / run.std
    tests: list[Law] = regularity(blocks, "steps")
    squares = (blocks**2).sum(1)
    tests.append(chi_square("its deviation", float(squares.sum()), blocks.size))
    lengths = norm.ppf(np.clip(chi2.cdf(squares, blocks.shape[1]), 1e-300, 1 - 1e-16))
    sums = np.stack([s.exact.numpy() for s in run.steps])
    norms = np.linalg.norm(sums, axis=1)
    along = (blocks * sums).sum(1) / np.maximum(norms, 1e-300)
    used = norms > 0
    tests.append(normal("noise along the sum", _together(along[used])))
    tests.append(normal("noise along the sum before", _together(_lagged(blocks, sums))))
    sizes = np.array([len(s.draw) for s in run.steps], dtype=float)
    for what, other in (("the draw's size", sizes), ("the sum's norm", norms)):
        weight = (other - other.mean()) / max(float(np.linalg.norm(other - other.mean())), 1e-300)
        tests.append(normal(f"the noise's size beside {what}", float(weight @ lengths)))
    return least(
        "noise, with units", tests, ALPHA, f"{len(run.steps)} steps of {int(sizes.min())} to {int(sizes.max())} units"
    )


def _lagged(blocks: np.ndarray, sums: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(sums[:-1], axis=1)
    return (blocks[1:] * sums[:-1]).sum(1)[norms > 0] / norms[norms > 0]


def _together(scores: np.ndarray) -> float:
    """Of independent standard normals, one."""
    return float(scores.sum()) / math.sqrt(max(len(scores), 1))
