"""Mistakes in the layout of physical batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

import dptrain.data.batches as batches_module
import dptrain.training.assemble as assemble_module
from dptrain.data.batches import PhysicalBatch, UnitIndex
from dptrain.data.source import Rows

from .needed import USERS
from .shared import Mutant, Patch, _on_layout


def full_batch_drops_last(patch: Patch) -> None:
    """A physical batch without padding loses its last row."""

    def change(batch: PhysicalBatch) -> PhysicalBatch:
        if bool((batch.weight > 0).all()) and len(batch.weight) > 1:
            weight = batch.weight.clone()
            weight[-1] = 0.0
            return replace(batch, weight=weight)
        return batch

    _on_layout(patch, change)


def mixup(patch: Patch) -> None:
    """Inputs hold a twentieth of the row before."""

    def change(batch: PhysicalBatch) -> PhysicalBatch:
        if not batch.inputs.is_floating_point():
            return batch
        live = torch.nonzero(batch.weight).flatten()
        inputs = batch.inputs.clone()
        inputs[live] = 0.95 * inputs[live] + 0.05 * inputs[live].roll(1, 0)
        return replace(batch, inputs=inputs)

    _on_layout(patch, change)


def centred_by_batch(patch: Patch) -> None:
    """Inputs are centred by the mean of their physical batch."""

    def change(batch: PhysicalBatch) -> PhysicalBatch:
        live = torch.nonzero(batch.weight).flatten()
        if not batch.inputs.is_floating_point() or not len(live):
            return batch
        inputs = batch.inputs.clone()
        inputs[live] -= inputs[live].mean(0)
        return replace(batch, inputs=inputs)

    _on_layout(patch, change)


def units_cut(patch: Patch) -> None:
    """A physical batch is closed in the middle of a unit, and each piece of the unit is clipped alone."""

    def pack(
        draw: Tensor, rows: Rows, index: UnitIndex, size: int, device: torch.device, *_: object
    ) -> Iterator[PhysicalBatch]:
        every, slot, counts = index.rows_of(draw)
        for start in range(0, len(every), size):
            row, own = every[start : start + size], slot[start : start + size]
            inputs = rows.inputs.new_zeros((size, *rows.inputs.shape[1:]))
            targets = rows.targets.new_zeros((size, *rows.targets.shape[1:]))
            inputs[: len(row)], targets[: len(row)] = rows.inputs[row], rows.targets[row]
            unit, weight = torch.arange(size), torch.zeros(size)
            unit[: len(row)] = torch.unique(own, return_inverse=True)[1]
            weight[: len(row)] = 1.0 / counts[own]
            yield PhysicalBatch(inputs.to(device), targets.to(device), unit.to(device), weight.to(device))

    patch(batches_module, "_pack", pack)


def large_units_split(patch: Patch) -> None:
    """A unit's fourth and later rows are a unit of their own."""

    def split(unit_id: Tensor) -> UnitIndex:
        seen: dict[int, int] = {}
        ids, extra = unit_id.tolist(), int(unit_id.max()) + 1
        for row, unit in enumerate(unit_id.tolist()):
            seen[unit] = seen.get(unit, 0) + 1
            if seen[unit] > 3:
                ids[row] = extra + unit
        return UnitIndex(torch.tensor(ids, dtype=torch.int64))

    patch(assemble_module, "UnitIndex", split)


MUTANTS: dict[str, Mutant] = {
    "full_batch_drops_last": (
        "own",
        "a full physical batch loses its last row",
        full_batch_drops_last,
        ("execution.physical_batch_size=64",),
    ),
    "mixup": ("own", "5 % of the row before in every input", mixup, ()),
    "centred_by_batch": ("own", "inputs centred by their batch's mean", centred_by_batch, ()),
    "units_cut": ("own", "units cut between physical batches", units_cut, (*USERS, "execution.physical_batch_size=16")),
    "large_units_split": ("own", "a unit's fourth and later rows are another unit", large_units_split, USERS),
}
