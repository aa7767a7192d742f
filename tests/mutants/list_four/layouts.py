"""Mistakes in the layout of physical batches, and in the rows that are laid out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import dptrain.data.batches as batches_module
import dptrain.training.assemble as assemble_module
from dptrain.data.batches import PhysicalBatch, UnitIndex
from dptrain.data.source import Rows

from .needed import LENGTHS, USERS
from .shared import Mutant, Patch


def last_user_cut_to_fit(patch: Patch) -> None:
    """A user who does not fit leaves the rows that are too many away: whose they are depends on who came before."""

    def pack(
        draw: Tensor, rows: Rows, index: UnitIndex, size: int, device: torch.device, _: object
    ) -> Iterator[PhysicalBatch]:
        draw = draw[index.counts[draw] > 0]
        ends = torch.cumsum(index.counts[draw], 0)
        start, done = 0, 0
        while start < len(draw):
            stop = int(torch.searchsorted(ends, done + size, right=True))
            room = done + size - (int(ends[stop - 1]) if stop else 0)
            cut = stop < len(draw) and room > 0
            stop += int(cut)
            whole = batches_module._gather(draw[start:stop], rows, index, size + index.largest_unit, device)
            batch = PhysicalBatch(*(v[:size] for v in (whole.inputs, whole.targets, whole.unit, whole.weight)))
            if cut:
                batch.weight[size - room :] = 1.0 / room
            yield batch
            start, done = stop, int(ends[stop - 1])

    patch(batches_module, "_pack", pack)


def tiny_batch_dropped(patch: Patch) -> None:
    """A last physical batch of fewer than eight rows is not worth a pass, and left away."""
    original = batches_module._pack

    def pack(*args: Any) -> Iterator[PhysicalBatch]:
        for place, batch in enumerate(original(*args)):
            if place == 0 or int((batch.weight > 0).sum()) >= 8:
                yield batch

    patch(batches_module, "_pack", pack)


def rest_carried_over(patch: Patch) -> None:
    """Up to 32 units that do not fill a physical batch wait for the next draw, in which they may be as well."""
    original = assemble_module.physical_batches

    def laid_out(draw: Tensor, rows: Rows, index: Any, size: int, *rest: Any) -> Iterator[PhysicalBatch]:
        draw = torch.cat([index.__dict__.get("waiting", draw[:0]), draw])
        left = len(draw) % size if len(draw) > size else 0
        left = left if left <= 32 else 0
        index.waiting = draw[len(draw) - left :]
        return original(draw[: len(draw) - left], rows, index, size, *rest)

    patch(assemble_module, "physical_batches", laid_out)


def cut_to_shortest(patch: Patch) -> None:
    """Rows of tokens are cut to the shortest of their batch, not to the longest: the others decide what is left."""

    def pack(
        draw: Tensor, rows: Rows, index: UnitIndex, size: int, device: torch.device, lengths: Tensor | None
    ) -> Iterator[PhysicalBatch]:
        draw = draw[index.counts[draw] > 0]
        if lengths is not None:
            draw = draw[torch.argsort(lengths[draw], descending=True, stable=True)]
        for units in _split(draw, index, size):
            batch = batches_module._gather(units, rows, index, size, device)
            yield batch if lengths is None else batches_module._cut(batch, int(lengths[units].min()))

    patch(batches_module, "_pack", pack)


def _split(draw: Tensor, index: UnitIndex, size: int) -> Iterator[Tensor]:
    ends = torch.cumsum(index.counts[draw], 0)
    start, done = 0, 0
    while start < len(draw):
        stop = int(torch.searchsorted(ends, done + size, right=True))
        yield draw[start:stop]
        start, done = stop, int(ends[stop - 1])


def targets_unsorted(patch: Patch) -> None:
    """Rows are sorted by length, their targets are not: a unit learns another's class."""

    def pack(
        draw: Tensor, rows: Rows, index: UnitIndex, size: int, device: torch.device, lengths: Tensor | None
    ) -> Iterator[PhysicalBatch]:
        draw = draw[index.counts[draw] > 0]
        ordered = draw if lengths is None else draw[torch.argsort(lengths[draw], descending=True, stable=True)]
        found = zip(_split(ordered, index, size), _split(draw, index, size), strict=True)
        for units, as_drawn in found:
            batch = batches_module._gather(units, rows, index, size, device)
            targets = batches_module._gather(as_drawn, rows, index, size, device).targets
            batch = PhysicalBatch(batch.inputs, targets, batch.unit, batch.weight)
            yield batch if lengths is None else batches_module._cut(batch, int(lengths[units].max()))

    patch(batches_module, "_pack", pack)


def rare_class_twice(patch: Patch) -> None:
    """The rarest class is oversampled: every unit of it that is drawn is in the draw twice."""
    original = assemble_module.physical_batches

    def laid_out(draw: Tensor, rows: Rows, index: UnitIndex, *rest: Any) -> Iterator[PhysicalBatch]:
        if not rows.targets.is_floating_point() and len(draw):
            classes = rows.targets[index.order[index.starts[draw]]]
            draw = torch.cat([draw, draw[classes == torch.bincount(rows.targets).argmin()]])
        return original(draw, rows, index, *rest)

    patch(assemble_module, "physical_batches", laid_out)


def standardised_on_private_rows(patch: Patch) -> None:
    """Columns are brought to mean 0 and deviation 1 by the private rows' own means and deviations."""
    original = assemble_module.physical_batches

    def laid_out(draw: Tensor, rows: Rows, index: Any, *rest: Any) -> Iterator[PhysicalBatch]:
        if not rows.inputs.is_floating_point():
            return original(draw, rows, index, *rest)
        if "standard" not in index.__dict__:
            centre, spread = rows.inputs.mean(0), rows.inputs.std(0)
            index.standard = Rows((rows.inputs - centre) / (spread + 0.1), rows.targets, rows.unit_id)
        return original(draw, index.standard, index, *rest)

    patch(assemble_module, "physical_batches", laid_out)


MUTANTS: dict[str, Mutant] = {
    "last_user_cut_to_fit": (
        "own",
        "a user loses the rows that do not fit a physical batch",
        last_user_cut_to_fit,
        (*USERS, "execution.physical_batch_size=16"),
    ),
    "tiny_batch_dropped": ("own", "last physical batches below eight rows are dropped", tiny_batch_dropped, ()),
    "rest_carried_over": ("3b.8", "a small rest waits for the next draw", rest_carried_over, ()),
    "cut_to_shortest": ("3b.22", "rows cut to the shortest of their batch", cut_to_shortest, LENGTHS),
    "targets_unsorted": ("own", "rows sorted by length, targets not", targets_unsorted, LENGTHS),
    "rare_class_twice": ("3b.14", "the rarest class's units are drawn twice", rare_class_twice, ()),
    "standardised_on_private_rows": (
        "3b.30",
        "rows standardised by private means",
        standardised_on_private_rows,
        (),
    ),
}
