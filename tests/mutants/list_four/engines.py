"""Mistakes in the engines beside bookkeeping, and in the runs that a limit on memory makes of a physical batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import dptrain.gradients.bookkeeping.engine as engine_module
import dptrain.gradients.opacus_hooks as hooks_module
from dptrain.data.batches import PhysicalBatch
from dptrain.gradients.bookkeeping.engine import BookkeepingEngine
from dptrain.gradients.bookkeeping.runs import Planner, Run, RunningSum
from dptrain.gradients.clip import clip_factor
from dptrain.gradients.loop import LoopEngine
from dptrain.gradients.opacus_ghost import OpacusGhostEngine
from dptrain.gradients.plain import plain_sum
from dptrain.gradients.protocol import ClippingRule, UnitStats

from .needed import LIMIT, USERS
from .shared import Mutant, Patch


def loop_last_row_after_clip(patch: Patch) -> None:
    """A user's gradient is clipped before the last row is added: that row's part is as long as it likes."""

    def add_clipped_sum(self: Any, batch: PhysicalBatch, total: Tensor) -> UnitStats:
        norms = torch.zeros(batch.num_slots, dtype=torch.float64)
        losses = torch.zeros(batch.num_slots)
        live = batch.weight != 0
        for slot in torch.unique(batch.unit[live]).tolist():
            rows = torch.nonzero((batch.unit == slot) & live).flatten().tolist()
            gradient = torch.zeros(len(total), dtype=torch.float64)
            for place, row in enumerate(rows):
                losses[row], values = self._gradient_of_row(batch, row)
                if place and place == len(rows) - 1:
                    gradient *= _factor(gradient, self._rule, len(total)) * (self._rule.grid or 1.0)
                gradient += values
            norms[slot] = gradient.norm()
            if not math.isfinite(float(norms[slot])):
                continue
            alone = len(rows) == 1
            gradient *= _factor(gradient, self._rule, len(total)) if alone else 1.0 / (self._rule.grid or 1.0)
            total += gradient if self._rule.grid is None else gradient.round_()
        return UnitStats(norms, losses)

    patch(LoopEngine, "add_clipped_sum", add_clipped_sum)


def _factor(gradient: Tensor, rule: ClippingRule, size: int) -> Tensor:
    return clip_factor(gradient.norm(), rule, size)


def ghost_first_pass_left(patch: Patch) -> None:
    """The pass that takes norms leaves its gradient, which is not clipped, and the second pass adds to it."""
    original = OpacusGhostEngine._passes

    def passes(self: Any, batch: PhysicalBatch) -> Any:
        passed = original(self, batch)
        sizes = [part.numel() for part in passed.parts]
        first = torch.zeros(sum(sizes), dtype=torch.float64)
        plain_sum(self._alone._module, self._row_loss, batch, first, None)
        pairs = zip(passed.parts, first.split(sizes), strict=True)
        return replace(passed, parts=[part + piece.view(part.shape).to(part.dtype) for part, piece in pairs])

    patch(OpacusGhostEngine, "_passes", passes)


def hooks_layer_in_other_order(patch: Patch) -> None:
    """The first layer's gradients lie one row further than the others': one unit is in two slots, two are in one."""
    original = hooks_module.add_clipped_rows

    def add_clipped_rows(grads: Sequence[Tensor], unit: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        first, live = grads[0].clone(), torch.nonzero(weight).flatten()
        first[live] = grads[0][live.roll(1)]
        return original([first, *grads[1:]], unit, weight, *rest)

    patch(hooks_module, "add_clipped_rows", add_clipped_rows)


def run_splits_users(patch: Patch) -> None:
    """Runs under a limit on memory are so many rows, whoever they belong to: a user in two runs is clipped twice."""

    def runs(batch: PhysicalBatch, planner: Planner) -> Iterator[Run]:
        rows, shape, done = len(batch.weight), batch.inputs.shape[1:], 0
        order = torch.argsort(batch.unit, stable=True)
        while done < rows:
            part = order[done : done + planner.size(shape, rows, rows - done)]
            done += len(part)
            slots, place = torch.unique(batch.unit[part], return_inverse=True)
            held = PhysicalBatch(batch.inputs[part], batch.targets[part], place, batch.weight[part])
            yield Run(part, slots, held)

    patch(engine_module, "runs", runs)


def run_filled_up(patch: Patch) -> None:
    """The last run under a limit is as long as the first: its first rows were in the run before as well."""
    original = engine_module.runs

    def runs(batch: PhysicalBatch, planner: Planner) -> Iterator[Run]:
        rows, found = len(batch.weight), list(original(batch, planner))
        size = len(found[0].slots) if found else 0
        records = torch.equal(batch.unit, torch.arange(rows))
        if records and len(found) > 1 and len(found[-1].slots) < size:
            part, slots = slice(rows - size, rows), torch.arange(rows - size, rows)
            slot = torch.arange(size)
            held = PhysicalBatch(batch.inputs[part], batch.targets[part], slot, batch.weight[part])
            found[-1] = Run(part, slots, held)
        return iter(found)

    patch(engine_module, "runs", runs)


def made_up_rows_counted(patch: Patch) -> None:
    """The made-up rows on which a limit on memory is measured are in the sum of the first draw: up to 80 C."""
    original = BookkeepingEngine._in_runs

    def in_runs(self: Any, batch: PhysicalBatch, moving: Any, total: RunningSum) -> UnitStats:
        if len(batch.weight) and not self._planner.knows(batch.inputs.shape[1:]):
            self._planner.learn(batch, lambda rows, meter: self._pass(rows, moving, total, meter))
        return original(self, batch, moving, total)

    patch(BookkeepingEngine, "_in_runs", in_runs)


MUTANTS: dict[str, Mutant] = {
    "loop_last_row_after_clip": (
        "own",
        "a user's last row is added behind clipping",
        loop_last_row_after_clip,
        (*USERS, "clipping.engine=loop", "privacy.expected_batch_size=16", "privacy.steps=24"),
    ),
    "ghost_first_pass_left": (
        "3b.9",
        "ghost sums hold the norms' pass too",
        ghost_first_pass_left,
        ("clipping.engine=opacus_ghost",),
    ),
    "hooks_layer_in_other_order": (
        "own",
        "one layer's rows in another order",
        hooks_layer_in_other_order,
        ("clipping.engine=opacus_hooks",),
    ),
    "run_splits_users": (
        "own",
        "runs under a memory limit split users",
        run_splits_users,
        (*USERS, *LIMIT, "execution.physical_batch_size=64"),
    ),
    "run_filled_up": (
        "own",
        "last run under a memory limit filled with rows of the one before",
        run_filled_up,
        (*LIMIT, "execution.physical_batch_size=255"),
    ),
    "made_up_rows_counted": ("own", "rows made up for measuring are in the sum", made_up_rows_counted, LIMIT),
}
