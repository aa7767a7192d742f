"""A physical batch taken in runs of whole units, so that what one pass holds stays under a limit.

Clipped sums are additive over units and no unit straddles two runs, so the sum is the same up to its rounding, however
a batch is cut. How it is cut depends on sizes alone: the limit, the physical batch, the shape of a row, what a pass
over made-up rows of that shape was seen to take, and which rows are one unit's. No value of a row is read for it. That
units are packed by the draw, and so the borders of runs too, takes nothing from the guarantee: each unit is clipped
within its own run, and what is released is their sum. Padding goes through as rows do, so that the number of runs says
nothing about a draw of records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dptrain.data.batches import PhysicalBatch
from dptrain.errors import ConfigError
from dptrain.gradients.bookkeeping.contribution import MOST_UNITS, Contribution, Outer
from dptrain.gradients.bookkeeping.meter import Meter

SAMPLES = (8, 16, 8)
"""Parts of a physical batch that go through as made-up rows, one row in so many: to try ways, and twice measured."""
MOST_SAMPLED = 32
"""Most such rows: what a pass takes grows evenly with its rows, and the sample must fit where the batch does not."""
ROOM = 1.15
"""Times a gradient and the activations of a whole physical batch that a limit of 0 allows. Plain training too takes
more than these in its backward pass: by 0.03 of the activations (WRN) to 0.8 (a large vocabulary)."""


@dataclass(frozen=True)
class Taken:
    """Bytes that a pass over some rows was seen to take."""

    rows: int
    activations: float  # alive between forward and backward pass
    most: float  # alive at once at any time up to the sum
    held: float  # alive between backward pass and sum


@dataclass(frozen=True)
class Run:
    """Some whole units of a physical batch.

    Attributes:
        rows: (r,) their rows in it; a slice where these lie side by side.
        slots: (u,) their slots in it; slot i of ``batch`` is slot ``slots[i]`` there.
        batch: the rows as a batch of their own.
    """

    rows: Tensor | slice
    slots: Tensor
    batch: PhysicalBatch


@dataclass
class Planner:
    """How many rows go through at once.

    Attributes:
        limit: bytes that a pass and the sum may take beside model and inputs; 0: about what plain training takes, that
            is ``ROOM`` times the gradient and the activations of the whole physical batch; None: no limit, and every
            physical batch is one run.
        fixed: bytes of the sum itself.
    """

    limit: int | None
    fixed: int = 0
    _taken: dict[torch.Size, list[Taken]] = field(default_factory=dict)

    @classmethod
    def of(cls, limit: int | None, parameters: Iterable[Tensor]) -> Planner:
        """For a model whose trainable parameters are these.

        Raises:
            ConfigError: the limit is used up by the sum.
        """
        fixed = sum(p.nbytes for p in parameters)
        if limit and limit <= fixed:
            raise ConfigError(
                "execution.memory_limit",
                limit >> 20,
                f"is used up by the sum of gradients ({fixed / 2**20:.0f} MiB)",
                "raise it, or set 0 for about what plain training takes",
            )
        return cls(limit, fixed)

    def size(self, shape: torch.Size, rows: int, left: int) -> int:
        """Rows of the next run, of a shape that is known.

        Args:
            shape: of one row.
            rows: of the physical batch.
            left: rows of it that have not gone through.
        """
        taken = self._taken[shape]
        if self.limit == 0:
            room = ROOM * (_at(rows, [(t.rows, t.activations) for t in taken]) + self.fixed)
        else:
            room = self.limit or 0
        number = next(k for k in range(1, left + 1) if k == left or self._needs(-(-left // k), k, taken) <= room)
        return -(-left // number)

    def _needs(self, rows: int, number: int, taken: list[Taken]) -> float:
        """Bytes, for that many runs of so many rows; before the first has been added, there is no sum yet."""
        most, held = _at(rows, [(t.rows, t.most) for t in taken]), _at(rows, [(t.rows, t.held) for t in taken])
        return max(most + (self.fixed if number > 1 else 0), held + self.fixed)

    def knows(self, shape: torch.Size) -> bool:
        """Whether passes over rows of that shape have been measured."""
        return shape in self._taken

    def learn(self, batch: PhysicalBatch, take: Callable[[PhysicalBatch, Meter | None], object]) -> None:
        """Has a few made-up rows like those of a batch go through, and keeps what that took.

        Args:
            batch: read for shapes and dtypes.
            take: passes rows through the model, measured by the meter where there is one.
        """
        found = list[Taken]()
        for place, share in enumerate(SAMPLES):
            rows = made_up(batch, max(1, min(len(batch.weight), MOST_SAMPLED * SAMPLES[0]) // share))
            meter = Meter() if place else None
            take(rows, meter)
            if meter is not None:
                found.append(Taken(len(rows.weight), meter.marks[-2], meter.most, meter.marks[-1]))
        self._taken[batch.inputs.shape[1:]] = found


def made_up(batch: PhysicalBatch, count: int) -> PhysicalBatch:
    """So many records of the shapes and dtypes of a batch: noise for real numbers, 0 for whole ones and targets."""
    inputs, targets = (values.new_zeros((count, *values.shape[1:])) for values in (batch.inputs, batch.targets))
    if inputs.is_floating_point():
        noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0))
        inputs.copy_(noise)
    weight = torch.ones_like(batch.weight[:1]).expand(count).contiguous()
    return PhysicalBatch(inputs, targets, torch.arange(count, device=batch.unit.device), weight)


def _at(rows: int, points: list[tuple[int, float]]) -> float:
    """Bytes at that many rows, on a straight line through two points; in proportion to one."""
    (first, low), (last, high) = points[0], points[-1]
    if first == last:
        return max(low, high) * rows / first
    return low + (high - low) * (rows - first) / (last - first)


def runs(batch: PhysicalBatch, planner: Planner) -> Iterator[Run]:
    """Cuts a batch; a run is made when it is asked for, at the size that is right by then.

    A run has as many units as fit its rows, and one where none fits.
    """
    rows, shape, device = len(batch.weight), batch.inputs.shape[1:], batch.weight.device
    owners = batch.unit.cpu()
    done = 0
    if torch.equal(owners, torch.arange(rows)):
        while done < rows:
            part = slice(done, done + planner.size(shape, rows, rows - done))
            done = min(part.stop, rows)
            slots = torch.arange(part.start, done, device=device)
            yield Run(part, slots, _part(batch, part, slots - part.start))
        return
    order = torch.argsort(owners, stable=True)
    slots, place, counts = torch.unique_consecutive(owners[order], return_inverse=True, return_counts=True)
    ends = torch.cumsum(counts, 0)
    unit = 0
    while unit < len(slots):
        size = planner.size(shape, rows, rows - done)
        last = max(int(torch.searchsorted(ends, done + size, right=True)), unit + 1)
        stop = int(ends[last - 1])
        part = order[done:stop].to(device)
        yield Run(part, slots[unit:last].to(device), _part(batch, part, (place[done:stop] - unit).to(device)))
        unit, done = last, stop


def _part(batch: PhysicalBatch, rows: Tensor | slice, slot: Tensor) -> PhysicalBatch:
    return PhysicalBatch(batch.inputs[rows], batch.targets[rows], slot, batch.weight[rows])


@dataclass
class RunningSum:
    """Sums by parameter, of at most ``MOST_UNITS`` units in float32, and of these in float64.

    Attributes:
        parts: the sums.
        keeps: whether they are held; otherwise they are only computed, so that one can see what that takes.
    """

    parts: dict[str, Tensor] = field(default_factory=dict)
    keeps: bool = True
    _units: int = 0

    def begin(self, units: int) -> None:
        """What is added from now on is of so many units more."""
        self._units += units

    def add(self, name: str, contribution: Contribution, factor: Tensor) -> None:
        """Adds one parameter's weighted sum."""
        held = self.parts.get(name)
        narrow = self._units <= MOST_UNITS
        if held is not None and narrow and isinstance(contribution, Outer) and contribution.add_to(held, factor):
            return
        part = contribution.weighted_sum(factor)
        if not self.keeps:
            return
        if held is not None:
            part = (held if narrow and part.dtype == held.dtype else held.double()).add_(part)
        self.parts[name] = part
