"""Physical batches: a draw laid out in tensors of one fixed shape. A performance matter only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dptrain.data.source import Rows
from dptrain.errors import ConfigError


@dataclass(frozen=True)
class PhysicalBatch:
    """Rows that go through the model at once. Every batch of a run has the same R, padded. Rows of tokens may be cut
    behind the end of the longest in the batch, to one of a few public lengths.

    A unit's rows are never split between two physical batches.
    """

    inputs: Tensor  # (R, *input_shape)
    targets: Tensor  # (R,)
    unit: Tensor  # (R,) int64: slot, in 0..R-1, of the unit that the row belongs to
    weight: Tensor  # (R,) float32: 1 / rows of the row's unit in this draw; exactly 0 for padding rows

    @property
    def num_slots(self) -> int:
        """Number of unit slots, R; slots that no row points at contribute nothing."""
        return len(self.weight)


class UnitIndex:
    """Which rows belong to which unit, laid out once so that a draw is gathered without a loop over units.

    Args:
        unit_id: (N,) int64 unit of each row, in 0..num_units-1. A unit may have no row.
    """

    def __init__(self, unit_id: Tensor) -> None:
        if len(unit_id) and int(unit_id.min()) < 0:
            raise ValueError("unit ids must not be negative")
        unit_id = unit_id.cpu()
        self.counts = torch.bincount(unit_id)  # (num_units,) rows of each unit
        self.starts = torch.cumsum(self.counts, 0) - self.counts  # (num_units,) where a unit's rows begin in `order`
        self.order = torch.argsort(unit_id, stable=True)  # (N,) rows, grouped by unit

    @property
    def num_units(self) -> int:
        """Number of units: one more than the largest unit id."""
        return len(self.counts)

    @property
    def largest_unit(self) -> int:
        """Most rows that one unit has; 0 without rows."""
        return int(self.counts.max()) if len(self.counts) else 0

    def rows_of(self, units: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The rows of ``units``, unit after unit.

        Returns:
            (K,) row indices, (K,) position in ``units`` that each row belongs to, (len(units),) rows of each unit.
        """
        counts = self.counts[units]
        owner = torch.repeat_interleave(torch.arange(len(units)), counts)
        first = torch.cumsum(counts, 0) - counts
        within = torch.arange(len(owner)) - first[owner]
        return self.order[self.starts[units][owner] + within], owner, counts


def physical_batches(
    draw: Tensor,
    rows: Rows,
    index: UnitIndex,
    size: int,
    device: torch.device | None = None,
    lengths: Tensor | None = None,
) -> Iterator[PhysicalBatch]:
    """Lays a draw out in physical batches of exactly ``size`` rows.

    Units are packed in the order of the draw, or where ``lengths`` are given from long to short; a batch is closed when
    the next unit does not fit. Which unit goes where depends on numbers of rows (and these lengths) only, never on
    their content. Padding rows are zeros with weight 0 and a slot of their own. An empty draw, or one whose units have
    no rows, yields nothing.

    Args:
        draw: (K,) int64 distinct units.
        rows: the rows in memory.
        index: ``UnitIndex(rows.unit_id)``.
        size: R, rows of a physical batch.
        device: where batches are put; left out, where the rows lie.
        lengths: (num_units,) int64: to how many of its T tokens each unit's rows may be cut (``length_buckets``); a
            batch has the largest of its units. Left out: T.

    Raises:
        ConfigError: R is smaller than the largest unit (of all units, so that the answer does not depend on
            the draw).
    """
    if index.largest_unit > size:
        raise ConfigError(
            "execution.physical_batch_size",
            size,
            f"a unit with {index.largest_unit} rows does not fit",
            f"set it to {index.largest_unit} or more, or lower privacy.max_rows_per_unit",
        )
    return _pack(draw.cpu(), rows, index, size, device or rows.inputs.device, lengths)


def _pack(
    draw: Tensor, rows: Rows, index: UnitIndex, size: int, device: torch.device, lengths: Tensor | None
) -> Iterator[PhysicalBatch]:
    draw = draw[index.counts[draw] > 0]
    if lengths is not None:
        # The longest first, so that an engine meets its largest shape first, and rows that only pad are short ones.
        draw = draw[torch.argsort(lengths[draw], descending=True, stable=True)]
    ends = torch.cumsum(index.counts[draw], 0)  # (K,) rows up to and including each unit
    start, done = 0, 0
    while start < len(draw):
        stop = int(torch.searchsorted(ends, done + size, right=True))
        units = draw[start:stop]
        batch = _gather(units, rows, index, size, device)
        yield batch if lengths is None else _cut(batch, int(lengths[units].max()))
        start, done = stop, int(ends[stop - 1])


def _gather(units: Tensor, rows: Rows, index: UnitIndex, size: int, device: torch.device) -> PhysicalBatch:
    row, slot, counts = index.rows_of(units)
    used = len(row)
    inputs = rows.inputs.new_zeros((size, *rows.inputs.shape[1:]))
    targets = rows.targets.new_zeros((size, *rows.targets.shape[1:]))
    inputs[:used] = rows.inputs[row.to(rows.inputs.device)]
    targets[:used] = rows.targets[row.to(rows.targets.device)]
    # Padding row i takes slot i: there are never more units than rows, so no unit has that slot.
    unit = torch.arange(size)
    unit[:used] = slot
    weight = torch.zeros(size)
    weight[:used] = 1.0 / counts[slot]
    return PhysicalBatch(inputs.to(device), targets.to(device), unit.to(device), weight.to(device))


def _cut(batch: PhysicalBatch, length: int) -> PhysicalBatch:
    """The batch with its rows (and targets a token, where there are) cut to their first tokens."""
    targets = batch.targets if batch.targets.dim() == 1 else batch.targets[:, :length].contiguous()
    return PhysicalBatch(batch.inputs[:, :length].contiguous(), targets, batch.unit, batch.weight)
