"""Mistakes in the layout of physical batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import dptrain.data.batches as batches_module
from dptrain.data.batches import PhysicalBatch, UnitIndex
from dptrain.data.source import Rows

from .needed import SMALL, USERS
from .shared import Mutant, Patch


def edge_unit_twice(patch: Patch) -> None:
    """The unit that fills a physical batch to the brim is the first of the next one, too: 2 C."""

    def pack(
        draw: Tensor, rows: Rows, index: UnitIndex, size: int, device: torch.device, *_: object
    ) -> Iterator[PhysicalBatch]:
        ends = torch.cumsum(index.counts[draw], 0)
        start, done = 0, 0
        while start < len(draw):
            stop = int(torch.searchsorted(ends, done + size, right=True))
            yield batches_module._gather(draw[start:stop], rows, index, size, device)
            full = stop < len(draw) and int(ends[stop - 1]) == done + size and stop - start > 1
            start = stop - 1 if full else stop
            done = int(ends[start - 1]) if start else 0

    patch(batches_module, "_pack", pack)


def rows_by_position(patch: Patch) -> None:
    """Units get as many rows as they have, but in the file's order: a user's rows are in other users' slots."""
    original = UnitIndex.__init__

    def init(self: UnitIndex, unit_id: Tensor) -> None:
        original(self, unit_id)
        self.order = torch.arange(len(self.order))

    patch(UnitIndex, "__init__", init)


def class_weights_of_batch(patch: Patch) -> None:
    """Rows are weighted by how rare their class is in the physical batch: one unit changes the others' gradients."""
    original = batches_module._gather

    def gather(*args: Any) -> PhysicalBatch:
        batch = original(*args)
        live = batch.weight > 0
        counts = torch.bincount(batch.targets[live], minlength=10).clamp(min=1)
        scale = float(live.sum()) / (len(counts) * counts[batch.targets])
        return PhysicalBatch(batch.inputs, batch.targets, batch.unit, batch.weight * scale.float())

    patch(batches_module, "_gather", gather)


def buffers_reused(patch: Patch) -> None:
    """Tensors of batches are reused, and only the rows in use written: a smaller draw still holds rows of the last."""
    original = batches_module._gather
    held: dict[tuple[int, ...], PhysicalBatch] = {}

    def gather(*args: Any) -> PhysicalBatch:
        batch = original(*args)
        before = held.get(tuple(batch.inputs.shape))
        used = int((batch.weight > 0).sum())
        if before is not None:
            batch.inputs[used:], batch.targets[used:] = before.inputs[used:], before.targets[used:]
            batch.weight[used:] = before.weight[used:]
        held[tuple(batch.inputs.shape)] = batch
        return batch

    patch(batches_module, "_gather", gather)


MUTANTS: dict[str, Mutant] = {
    "edge_unit_twice": ("3b.8", "a unit at the edge of two physical batches is in both", edge_unit_twice, SMALL),
    "rows_by_position": ("own", "users' rows taken in the file's order", rows_by_position, USERS),
    "class_weights_of_batch": (
        "3b.22",
        "rows weighted by their class's share of the batch",
        class_weights_of_batch,
        ("privacy.clipping_norm=3", "execution.physical_batch_size=32"),
    ),
    "buffers_reused": ("3a row 1", "rows of an earlier batch behind a smaller one", buffers_reused, ()),
}
