"""Mistakes in sums and in their rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dptrain.data import batches
from dptrain.data.batches import PhysicalBatch
from dptrain.gradients import draw_sum
from dptrain.gradients.draw_sum import DrawSum
from dptrain.gradients.loop import LoopEngine
from dptrain.gradients.opacus_hooks import OpacusHooksEngine
from dptrain.training import assemble
from dptrain.training.loop import Trainer

from .needed import Mixing
from .shared import HOOKS, VMAP, Mutant, Patch


def batch_averaged(patch: Patch) -> None:
    original = OpacusHooksEngine._gradients

    def averaged(self: Any, inputs: Tensor, targets: Tensor, weight: Tensor) -> Any:
        return original(self, inputs, targets, weight / max(1, int((weight > 0).sum())))

    patch(OpacusHooksEngine, "_gradients", averaged)


def units_mix(patch: Patch) -> None:
    patch(OpacusHooksEngine, "_check", lambda *_: None)
    patch(Mixing, "mean", lambda self, hidden: hidden.mean(0))


def buffers_follow_rows(patch: Patch) -> None:
    original = LoopEngine._forward

    def forward(self: Any, batch: PhysicalBatch, row: int) -> Tensor:
        with torch.no_grad():
            self._module.seen.mul_(0.9).add_(0.1 * batch.inputs[row].flatten().nan_to_num())
        return original(self, batch, row)

    patch(LoopEngine, "_forward", forward)


def scaled_sum(factor: float) -> Callable[[Patch], None]:
    def apply(patch: Patch) -> None:
        original = Trainer._clipped_sum

        def clipped(self: Any, step: int, total: DrawSum) -> Any:
            report = original(self, step, total)
            total.flat().mul_(factor)
            return report

        patch(Trainer, "_clipped_sum", clipped)

    return apply


def only_last_physical_batch(patch: Patch) -> None:
    original = DrawSum.add

    def add(self: Any, one: Any, batch: PhysicalBatch, first: int = 0, last: int | None = None) -> Any:
        if first == 0:
            self.clear()
        return original(self, one, batch, first, last)

    patch(DrawSum, "add", add)


def last_physical_batch_twice(patch: Patch) -> None:
    original = batches._pack

    def pack(*given: Any) -> Iterator[PhysicalBatch]:
        every = list(original(*given))
        return iter([*every, *every[-1:]])

    patch(batches, "_pack", pack)


def last_physical_batch_lost(patch: Patch) -> None:
    original = batches._pack

    def pack(*given: Any) -> Iterator[PhysicalBatch]:
        every = list(original(*given))
        return iter(every[:-1] if len(every) > 1 else every)

    patch(batches, "_pack", pack)


def stale_total(patch: Patch) -> None:
    patch(DrawSum, "clear", lambda self: None)


def draw_merged_with_next(patch: Patch) -> None:
    original, held = Trainer._clipped_sum, dict[int, Tensor]()

    def clipped(self: Any, step: int, total: DrawSum) -> Any:
        report = original(self, step, total)
        kept = held.pop(id(total), None)
        if step % 4 == 2:
            held[id(total)] = total.flat().clone()
        if kept is not None:
            total.flat().add_(kept)
        return report

    patch(Trainer, "_clipped_sum", clipped)


def sum_in_bfloat16(patch: Patch) -> None:
    original = DrawSum.add

    def add(self: Any, *given: Any, **named: Any) -> Any:
        stats = original(self, *given, **named)
        self.flat().copy_(self.flat().bfloat16())
        return stats

    patch(DrawSum, "add", add)


def padding_counted(patch: Patch) -> None:
    original = batches._gather

    def gather(*given: Any) -> PhysicalBatch:
        batch = original(*given)
        return replace(batch, weight=torch.where(batch.weight == 0, 1.0, batch.weight))

    patch(batches, "_gather", gather)


def rows_summed_not_averaged(patch: Patch) -> None:
    original = batches._gather

    def gather(*given: Any) -> PhysicalBatch:
        batch = original(*given)
        return replace(batch, weight=(batch.weight > 0).float())

    patch(batches, "_gather", gather)


def rows_as_units(patch: Patch) -> None:
    original = batches._gather

    def gather(*given: Any) -> PhysicalBatch:
        batch = original(*given)
        return replace(batch, unit=torch.arange(len(batch.unit)))

    patch(batches, "_gather", gather)


def not_rounded(patch: Patch) -> None:
    original = draw_sum._release

    def release(source: Tensor, grad: Tensor, blocks: Any, scale: float, on_grid: bool, compiled: bool = False) -> None:
        original(source, grad, blocks, scale, False)

    patch(draw_sum, "_release", release)


def rounded_down(patch: Patch) -> None:
    patch(torch.Tensor, "round_", torch.Tensor.floor_)


def rounded_coarsely(patch: Patch) -> None:
    original = assemble.grid_step
    patch(assemble, "grid_step", lambda norm, slack, size: 64.0 * original(norm, slack, size))


MUTANTS: dict[str, Mutant] = {
    "batch_averaged": ("3b.10", "the loss is averaged over the physical batch", batch_averaged, HOOKS),
    "units_mix": (
        "3b.22",
        "the batch's mean is taken off, and nobody checks",
        units_mix,
        (*HOOKS, "model=own", "model.name=mutants_mixing"),
    ),
    "buffers_follow_rows": (
        "3b.23",
        "a running mean of rows in a buffer",
        buffers_follow_rows,
        ("clipping.engine=loop", "model=own", "model.name=mutants_counting"),
    ),
    "averaging_doubled": ("3b.16", "the sum is divided by a world of 2 once more", scaled_sum(0.5), ()),
    "averaging_lost": ("3b.16", "the sum is multiplied by a world of 2", scaled_sum(2.0), ()),
    "accumulation_overwritten": ("3b.9", "only the last physical batch stays", only_last_physical_batch, ()),
    "last_batch_twice": ("3b.8", "the last physical batch is added twice", last_physical_batch_twice, ()),
    "last_batch_lost": ("3a empty or last dropped", "the last physical batch is dropped", last_physical_batch_lost, ()),
    "stale_total": ("3b.8", "the sum is not cleared between steps", stale_total, ()),
    "draws_merged": ("3a virtual batch, 3b.8", "a draw's sum enters the next step, too", draw_merged_with_next, ()),
    "sum_bfloat16": ("3b.25", "sums across physical batches in bfloat16", sum_in_bfloat16, ()),
    "padding_counted": ("3b.12", "padding rows count as units", padding_counted, ()),
    "rows_summed": ("3b.31", "rows of a unit are summed, not averaged", rows_summed_not_averaged, ()),
    "rows_as_units": ("3b.14", "rows of one unit take slots of their own", rows_as_units, ()),
    "not_rounded": ("3b.26", "released off the grid", not_rounded, ()),
    "rounded_down": ("3b.26", "rounded down, not to the nearest", rounded_down, ()),
    "rounded_down_units": ("3b.26", "units rounded down, not to the nearest", rounded_down, VMAP),
    "grid_coarse": ("3b.26", "a grid 64 times too coarse", rounded_coarsely, VMAP),
}
