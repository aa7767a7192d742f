"""Time and memory of one engine beside a plain step: small batches first, then the real one if it will fit."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dptrain.data.batches import PhysicalBatch
from dptrain.errors import ConfigError, one_line
from dptrain.gradients.bookkeeping.refusals import out_of_memory
from dptrain.training.bench_step import Clock, PlainStep, PrivateStep
from dptrain.training.made_up import made_up_batch
from dptrain.training.memory import MIB, free_memory, peak, restart_peak
from dptrain.training.setup import Setup

WARM_UP = 2
FEWEST, MOST = 3, 60
"""Pairs of steps that are timed."""
SMALLEST = 4 * MIB
"""Peaks below this are mostly what the system rounds to, and make no ratio."""
NOISY = 0.1
"""Width of an interval, relative, from which a ratio is marked."""

Step = Callable[[], None]


@dataclass
class Deadline:
    """A moment, and what is left until then."""

    at: float

    @property
    def left(self) -> float:
        """Seconds; below 0 when it has passed."""
        return self.at - time.monotonic()


@dataclass
class Guess:
    """Two small batches, and what a larger one will take by a straight line through them."""

    rows: tuple[int, int]
    seconds: tuple[float, float]
    nbytes: tuple[float, float]

    def seconds_of(self, rows: int) -> float:
        """Time of one step."""
        return self._line(self.seconds, rows)

    def nbytes_of(self, rows: int) -> float:
        """Most memory that a step holds."""
        return self._line(self.nbytes, rows)

    def _line(self, values: tuple[float, float], rows: int) -> float:
        if self.rows[0] == self.rows[1]:
            return max(values)
        slope = max(0.0, (values[1] - values[0]) / (self.rows[1] - self.rows[0]))
        in_proportion = values[1] * rows / self.rows[1]  # nothing grows faster, and two timings make a shaky line
        return max(*values, min(in_proportion, values[1] + slope * (rows - self.rows[1])))


def measure_plain(setup: Setup, batch: PhysicalBatch) -> dict[str, Any]:
    """Peak of a few plain steps above the built model."""
    device = batch.weight.device
    PlainStep(setup).step(_first(batch, 2))  # libraries and thread pools come into memory here
    before = restart_peak(device)
    plain = PlainStep(setup)
    for _ in range(WARM_UP):
        plain.step(batch)
    return {"peak_mib": _peak_mib(before, device)}


def measure_engine(setup: Setup, name: str, batch: PhysicalBatch, seconds: float, deadline: Deadline) -> dict[str, Any]:
    """One engine on that batch: what ``_measured`` gives, or ``refused``: why there is none, in one line.

    Args:
        seconds: what the pairs may take.
        deadline: by which it must be over.
    """
    if deadline.left < 0:
        return {"refused": "not timed: bench.seconds are used up"}
    try:
        guess = _guess(setup, name, len(batch.weight))
        reason = _too_much(guess, len(batch.weight), batch.weight.device, deadline)
        return {"refused": reason} if reason else _measured(setup, name, batch, seconds, deadline)
    except ConfigError as error:
        return {"refused": one_line(str(error))}
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return {"refused": f"no memory for {len(batch.weight)} rows"}


def _measured(setup: Setup, name: str, batch: PhysicalBatch, seconds: float, deadline: Deadline) -> dict[str, Any]:
    """``ratio`` with its interval ``low`` to ``high``, ``pairs``, ``ms``, ``plain_ms``, ``peak_mib``, ``engine``, and
    ``warm_up_seconds``: what the first two steps took on the wall."""
    device = batch.weight.device
    before = restart_peak(device)
    start = time.monotonic()
    private = PrivateStep(setup, name)
    private.steps(batch, WARM_UP)
    took = time.monotonic() - start
    top = _peak_mib(before, device)
    plain, clock = PlainStep(setup), Clock(device)
    plain.step(batch)
    dp_times: list[float] = []
    plain_times: list[float] = []
    begun = time.monotonic()
    mark = clock.now()

    def after() -> bool:
        nonlocal mark
        middle = clock.now()
        plain.step(batch)
        end = clock.now()
        dp_times.append(middle - mark)
        plain_times.append(end - middle)
        spent = time.monotonic() - begun
        done = len(dp_times) - 1  # the first pair warms up
        over = done >= MOST or (done >= FEWEST and spent > seconds) or (done >= 1 and deadline.left < 0)
        mark = clock.now()
        return not over

    private.run(batch, after)
    dp_times, plain_times = dp_times[1:], plain_times[1:]
    ratios = [d / max(p, 1e-9) for d, p in zip(dp_times, plain_times, strict=True)]
    low, high = interval(ratios)
    return {
        "engine": private.engine,
        "ratio": statistics.median(ratios),
        "low": low,
        "high": high,
        "pairs": len(ratios),
        "ms": 1e3 * statistics.median(dp_times),
        "plain_ms": 1e3 * statistics.median(plain_times),
        "peak_mib": top,
        "warm_up_seconds": took,
    }


def interval(values: list[float], resamples: int = 1000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the median (Efron 1979)."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(resamples))
    return medians[resamples // 40], medians[-1 - resamples // 40]


def _guess(setup: Setup, name: str, rows: int) -> Guess:
    """Steps on a sixteenth and on an eighth of the rows; brings the engine's libraries into memory."""
    device = next(setup.module.parameters()).device
    unit = min(setup.plan.max_rows_per_unit, rows)
    sizes = (max(1, rows // 16), max(1, rows // 8))
    private = PrivateStep(setup, name)
    seconds, nbytes = [], []
    for size in sizes:
        small = made_up_batch(setup, size, unit)
        private.steps(small, 1)
        before = restart_peak(device)
        private.steps(small, 1)
        nbytes.append(float(max(0, peak(device) - before)))
        start = time.monotonic()  # apart: memory that was just given back is slow to take again
        private.steps(small, 1)
        seconds.append(time.monotonic() - start)
    return Guess(sizes, (seconds[0], seconds[1]), (nbytes[0], nbytes[1]))


def _too_much(guess: Guess, rows: int, device: torch.device, deadline: Deadline) -> str | None:
    """Why the real batch is not even tried; None where it is."""
    free = free_memory(device)
    if guess.nbytes_of(rows) > 0.8 * free:
        need, have = guess.nbytes_of(rows) / MIB, free / MIB
        return f"{rows} rows would take about {need:,.0f} MiB, and {have:,.0f} MiB are free"
    need = (FEWEST + WARM_UP + 2) * guess.seconds_of(rows)
    if need > deadline.left:
        left = f"{max(0.0, deadline.left):.0f} s of bench.seconds are left"
        return f"not timed: it would take about {need:.0f} s, and {left}"
    return None


def _peak_mib(before: int, device: torch.device) -> float:
    return max(0, peak(device) - before) / MIB


def _first(batch: PhysicalBatch, rows: int) -> PhysicalBatch:
    return PhysicalBatch(batch.inputs[:rows], batch.targets[:rows], batch.unit[:rows], batch.weight[:rows])
