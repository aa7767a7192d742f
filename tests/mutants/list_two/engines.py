"""Mistakes in how engines put units together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dptrain.gradients.bookkeeping.contribution as contribution_module
import dptrain.gradients.bookkeeping.convolution as convolution_module
import dptrain.gradients.bookkeeping.engine as engine_module
import dptrain.gradients.clip as clip_module
import dptrain.gradients.loop as loop_engine_module
import dptrain.gradients.opacus_hooks as hooks_module
import dptrain.gradients.vmap as vmap_module
from dptrain.data.batches import PhysicalBatch
from dptrain.gradients.bookkeeping.groups import Groups
from dptrain.gradients.loop import LoopEngine
from dptrain.gradients.protocol import ClippingRule

from .needed import USERS
from .shared import Mutant, Patch


def run_overlaps(patch: Patch) -> None:
    """Beyond 512 units, a run of units begins one too early, so that one unit is added twice."""

    def in_runs(units: int, weighted_sum: Callable[[slice], Tensor]) -> Tensor:
        most = contribution_module.MOST_UNITS
        if units <= most:
            return weighted_sum(slice(None))
        total = weighted_sum(slice(0, most)).double()
        for start in range(most, units, most):
            total += weighted_sum(slice(start - 1, start + most))
        return total

    patch(contribution_module, "in_runs", in_runs)
    patch(convolution_module, "in_runs", in_runs)


def pairs_clipped_together(patch: Patch) -> None:
    """Two units make a microbatch that is clipped as one."""
    patch(engine_module, "Groups", lambda unit, weight: Groups(torch.div(unit, 2, rounding_mode="floor"), weight))


def third_row_apart(patch: Patch) -> None:
    """From a unit's third row in a draw on, rows are clipped as units of their own."""

    def groups(unit: Tensor, weight: Tensor) -> Groups:
        owners, alive = unit.tolist(), (weight != 0).tolist()
        taken = {owner for owner, live in zip(owners, alive, strict=True) if live}
        free = [slot for slot in range(len(owners)) if slot not in taken]
        seen: dict[int, int] = {}
        for row, owner in enumerate(owners):
            if alive[row]:
                seen[owner] = seen.get(owner, 0) + 1
                if seen[owner] > 2:
                    owners[row] = free.pop()
        return Groups(torch.tensor(owners, dtype=unit.dtype, device=unit.device), weight)

    patch(engine_module, "Groups", groups)


def vmap_two_groups(patch: Patch) -> None:
    """Two groups of parameters are clipped apart, to 0.75 C each instead of C / sqrt(2)."""
    original = vmap_module.add_clipped_rows

    def add(grads: list[Tensor], unit: Tensor, weight: Tensor, rule: ClippingRule, total: Tensor) -> Tensor:
        if len(grads) < 2:
            return original(grads, unit, weight, rule, total)
        half = len(grads) // 2
        first = sum(g[0].numel() for g in grads[:half])
        part = replace(rule, clipping_norm=0.75 * rule.clipping_norm)
        one = original(grads[:half], unit, weight, part, total[:first])
        other = original(grads[half:], unit, weight, part, total[first:])
        return (one.square() + other.square()).sqrt()

    patch(vmap_module, "add_clipped_rows", add)


def vmap_last_chunk(patch: Patch) -> None:
    """The norm misses the last run of columns of a parameter that is worked on in several."""
    original = clip_module._chunks
    calls = [0]

    def chunks(flat: list[Tensor]) -> Iterator[tuple[slice, Tensor]]:
        calls[0] += 1
        of_norm = calls[0] % 2 == 1
        ends = np.cumsum([g.shape[1] for g in flat]).tolist()
        starts = [0, *ends]
        for columns, values in original(flat):
            if not (of_norm and columns.stop in ends and columns.start not in starts):
                yield columns, values

    patch(clip_module, "_chunks", chunks)


def vmap_factor_1_percent(patch: Patch) -> None:
    """Contributions of 1.01 C."""
    original = clip_module.clip_factor
    patch(
        clip_module,
        "clip_factor",
        lambda norm, rule, size: original(norm, replace(rule, clipping_norm=1.01 * rule.clipping_norm), size),
    )


def vmap_truncated_rows(patch: Patch) -> None:
    """Norms are taken of gradients cut to half precision towards zero, sums of the gradients as they are."""
    original = clip_module.clip_factor

    def factor(norm: Tensor, rule: ClippingRule, size: int) -> Tensor:
        cut = (norm.float().view(torch.int32) & ~0xFFFF).view(torch.float32).double()
        return original(cut, rule, size)

    patch(clip_module, "clip_factor", factor)


def hooks_by_row(patch: Patch) -> None:
    """Rows of a unit are clipped one by one under opacus_hooks."""
    original = hooks_module.add_clipped_rows

    def add(grads: Any, unit: Tensor, weight: Tensor, rule: ClippingRule, total: Tensor) -> Tensor:
        return original(grads, torch.arange(len(unit), device=unit.device), weight, rule, total)

    patch(hooks_module, "add_clipped_rows", add)


def loop_low_norm(patch: Patch) -> None:
    """Under loop, the factor is that of 0.98 of the norm where a model has above 1,000 parameters."""
    original = loop_engine_module.clip_factor
    patch(
        loop_engine_module,
        "clip_factor",
        lambda norm, rule, size: original(norm * (0.98 if size > 1000 else 1.0), rule, size),
    )


def buffers_stay(patch: Patch) -> None:
    """What a forward pass of private rows writes into buffers stays in the model."""

    def forward(self: Any, batch: PhysicalBatch, row: int) -> Tensor:
        outputs = self._module(batch.inputs[row : row + 1].clone())
        return self._row_loss(outputs, batch.targets[row : row + 1])[0]

    patch(LoopEngine, "_forward", forward)


MUTANTS: dict[str, Mutant] = {
    "run_overlaps": (
        "own",
        "beyond 512 units, one unit is added twice",
        run_overlaps,
        ("execution.physical_batch_size=700", "privacy.expected_batch_size=600"),
    ),
    "pairs_clipped_together": ("TF-privacy num_microbatches", "two units clipped as one", pairs_clipped_together, ()),
    "third_row_apart": ("own", "a unit's third row is clipped apart", third_row_apart, USERS),
    "vmap_two_groups": ("own", "two groups clipped to 0.75 C each", vmap_two_groups, ("clipping.engine=vmap",)),
    "vmap_last_chunk": ("own", "norm misses a parameter's last columns", vmap_last_chunk, ("clipping.engine=vmap",)),
    "vmap_factor_1_percent": ("own", "contributions of 1.01 C", vmap_factor_1_percent, ("clipping.engine=vmap",)),
    "vmap_truncated_rows": ("own", "norms cut to 7 bits towards zero", vmap_truncated_rows, ("clipping.engine=vmap",)),
    "hooks_by_row": ("Opacus", "units clipped row by row", hooks_by_row, (*USERS, "clipping.engine=opacus_hooks")),
    "loop_low_norm": (
        "own",
        "norm 2 % low for models above 1,000 parameters",
        loop_low_norm,
        ("clipping.engine=loop", "privacy.expected_batch_size=16"),
    ),
    "buffers_stay": (
        "own",
        "private rows write the model's buffers",
        buffers_stay,
        (
            "clipping.engine=loop",
            "model=own",
            "model.name=list_two_running",
            "privacy.expected_batch_size=16",
        ),
    ),
}
