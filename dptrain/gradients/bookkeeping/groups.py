"""Rows to units: how the rows of a physical batch lie, and how to bring a unit's rows side by side."""

from __future__ import annotations

import torch
from torch import Tensor


class Groups:
    """The units of one physical batch.

    Live rows (weight above 0) of a unit are one group. Three layouts, cheapest first: one row a unit, row r in slot r,
    where padding rows stay as units that are not live, so that shapes are the same for every batch; the same number of
    rows for every unit, side by side, which is a view; and anything else, gathered into groups padded with zeros.

    Args:
        unit: (R,) int64 slot of each row.
        weight: (R,) row weights; rows of weight 0 belong to nobody.

    Attributes:
        slots: (U,) int64 slot of each unit, in rising order.
        live: (U,) bool; units that are not live must add nothing.
        rows_per_unit: most rows that one unit has.
        num_units: U; 0 where no row is live.
    """

    def __init__(self, unit: Tensor, weight: Tensor) -> None:
        device = unit.device
        owners, alive = unit.cpu(), weight.cpu() != 0
        self.num_slots = len(unit)
        every = torch.arange(self.num_slots)
        if bool(alive.any()) and torch.equal(owners, every):
            rows, slots, counts = every, every, torch.ones_like(every)
            live = alive
        else:
            rows = torch.nonzero(alive).flatten()
            order = torch.argsort(owners[rows], stable=True)
            slots, counts = torch.unique_consecutive(owners[rows][order], return_counts=True)
            rows = rows[order]
            live = torch.ones_like(slots, dtype=torch.bool)
        self.slots, self.live = slots.to(device), live.to(device)
        self.num_units = len(slots)
        self.rows_per_unit = int(counts.max()) if len(counts) else 0
        self.num_rows = len(rows)
        self.is_view = (
            torch.equal(rows, every[: self.num_rows]) and self.num_rows == self.num_units * self.rows_per_unit
        )
        unit_of_row = torch.repeat_interleave(torch.arange(self.num_units), counts)
        within = torch.arange(self.num_rows) - (torch.cumsum(counts, 0) - counts)[unit_of_row]
        place = torch.full((self.num_units, max(self.rows_per_unit, 1)), -1, dtype=torch.int64)
        place[unit_of_row, within] = rows
        self._place, self._rows, self._unit_of_row = place.to(device), rows.to(device), unit_of_row.to(device)

    def gather(self, values: Tensor) -> Tensor:
        """Brings each unit's rows together.

        Args:
            values: (R, *shape), one entry a row.

        Returns:
            (U, K, *shape), K rows a unit; places that no row fills hold zeros. A view of ``values`` where the layout
            allows.
        """
        if self.is_view:
            return values[: self.num_rows].unflatten(0, (self.num_units, self.rows_per_unit))
        gathered = values[self._place.clamp(min=0)]
        empty = (self._place < 0).view(*self._place.shape, *[1] * (values.dim() - 1))
        return gathered.masked_fill_(empty, 0)

    def sum_rows(self, values: Tensor) -> Tensor:
        """(R, *shape) values of rows -> (U, *shape) sums over the live rows of each unit.

        Added in float64, so that a unit's sum is the same in every layout, whatever cancels in it.
        """
        if self.is_view and self.rows_per_unit == 1:
            return values[: self.num_rows]
        if self.is_view:
            return self.gather(values).sum(1, dtype=torch.float64).to(values.dtype)
        out = torch.zeros((self.num_units, *values.shape[1:]), dtype=torch.float64, device=values.device)
        return out.index_add_(0, self._unit_of_row, values[self._rows].double()).to(values.dtype)

    def to_slots(self, values: Tensor) -> Tensor:
        """(U,) values of units -> (R,) values of slots, 0 for slots without a live unit."""
        return values.new_zeros(self.num_slots).index_copy_(0, self.slots, torch.where(self.live, values, 0.0))
