"""Mistakes in the other engines, and in how rows are brought together to units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

import dptrain.gradients.clip as clip_module
import dptrain.gradients.opacus_hooks as hooks_module
from dptrain.data.batches import PhysicalBatch
from dptrain.gradients.bookkeeping.groups import Groups
from dptrain.gradients.clip import clip_factor
from dptrain.gradients.opacus_ghost import CHECKED_ROWS, OpacusGhostEngine, _rows
from dptrain.gradients.protocol import ClippingRule
from dptrain.gradients.vmap import VmapEngine

from .needed import USERS, VMAP
from .shared import Mutant, Patch


def chunk_not_copied(patch: Patch) -> None:
    """Chunks are brought to float64, which copies nothing where they are: norms square the gradients in their place,
    and the sum adds the squares."""

    def chunks(flat: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor]]:
        width = max(1, clip_module._chunk_size(flat[0]) // max(len(flat[0]), 1))
        done = 0
        for grad in flat:
            for start in range(0, grad.shape[1], width):
                part = grad[:, start : start + width]
                yield slice(done + start, done + start + part.shape[1]), part.to(torch.float64)
            done += grad.shape[1]

    patch(clip_module, "_chunks", chunks)


def columns_overlap(patch: Patch) -> None:
    """Behind a parameter of two chunks the next one begins where the first chunk ended: its sum is added on top."""

    def chunks(flat: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor]]:
        width = max(1, clip_module._chunk_size(flat[0]) // max(len(flat[0]), 1))
        done = 0
        for grad in flat:
            for start in range(0, grad.shape[1], width):
                part = grad[:, start : start + width]
                yield slice(done + start, done + start + part.shape[1]), part.to(torch.float64, copy=True)
            done += min(width, grad.shape[1])

    patch(clip_module, "_chunks", chunks)


def first_weight_for_all(patch: Patch) -> None:
    """Weights of rows are not mapped over: every row of a physical batch has the weight of the first one's user."""
    original = VmapEngine.__init__

    def built(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        per_row = self._per_row

        def shared(moving: Any, fixed: Any, inputs: Tensor, targets: Tensor, weight: Tensor) -> Any:
            return per_row(moving, fixed, inputs, targets, weight[:1].expand(len(weight)))

        self._per_row = shared

    patch(VmapEngine, "__init__", built)


def checked_rows_counted(patch: Patch) -> None:
    """The few rows on which the engine is checked are left in the sum, where they are already; the check comes back
    with every fourth physical batch."""
    original = OpacusGhostEngine._check

    def check(self: Any, batch: PhysicalBatch, passed: Any) -> None:
        original(self, batch, passed)
        few = _rows(batch, torch.nonzero(batch.weight).flatten()[:CHECKED_ROWS])
        for part, again in zip(passed.parts, self._two_passes(few).parts, strict=True):
            part += again
        self._checked = False

    add = OpacusGhostEngine.clipped_parts

    def clipped_parts(self: Any, batch: PhysicalBatch) -> Any:
        self.seen = self.__dict__.get("seen", -1) + 1
        self._checked = self.seen % 4 != 0
        return add(self, batch)

    patch(OpacusGhostEngine, "_check", check)
    patch(OpacusGhostEngine, "clipped_parts", clipped_parts)


def longest_row_for_user(patch: Patch) -> None:
    """A user's norm is that of the longest of its rows, not of their sum."""

    def add_clipped_rows(
        grads: Sequence[Tensor], unit: Tensor, weight: Tensor, rule: ClippingRule, total: Tensor
    ) -> Tensor:
        rows = torch.nonzero(weight != 0).flatten()
        flat = torch.cat([g[rows].reshape(len(rows), -1) for g in grads], 1).double()
        slots, owner = torch.unique(unit[rows], return_inverse=True)
        norms = torch.zeros(len(slots), dtype=torch.float64).scatter_reduce_(0, owner, flat.norm(dim=1), "amax")
        factor = torch.where(norms.isfinite(), clip_factor(norms, rule, len(total)), 0.0)
        sums = torch.zeros((len(slots), flat.shape[1]), dtype=torch.float64).index_add_(0, owner, flat)
        parts = torch.where(norms.isfinite()[:, None], sums, 0.0) * factor[:, None]
        total += (parts if rule.grid is None else parts.round()).sum(0)
        return torch.zeros(len(weight), dtype=torch.float64).index_copy_(0, slots, norms)

    patch(hooks_module, "add_clipped_rows", add_clipped_rows)


def grouped_by_mean_rows(patch: Patch) -> None:
    """Rows are brought to users by a reshape wherever the number of users divides that of rows: with users of one and
    of three rows, one has two of another's."""
    original = Groups.__init__

    def built(self: Any, unit: Tensor, weight: Tensor) -> None:
        original(self, unit, weight)
        every = torch.arange(self.num_rows, device=self._rows.device)
        if not self.is_view and self.num_units and self.num_rows % self.num_units == 0:
            self.is_view = torch.equal(self._rows, every)
            self.rows_per_unit = self.num_rows // self.num_units if self.is_view else self.rows_per_unit

    patch(Groups, "__init__", built)


MUTANTS: dict[str, Mutant] = {
    "chunk_not_copied": (
        "own",
        "squares of gradients in the sum",
        chunk_not_copied,
        (*VMAP, "execution.dtype=float64"),
    ),
    "columns_overlap": (
        "own",
        "parameters' sums overlap behind a large one",
        columns_overlap,
        (*VMAP, "model.options.hidden=[64]"),
    ),
    "first_weight_for_all": (
        "3b.22",
        "all rows have the weight of the batch's first user",
        first_weight_for_all,
        (*USERS, *VMAP),
    ),
    "checked_rows_counted": (
        "own",
        "rows that the engine checks itself on count twice",
        checked_rows_counted,
        ("clipping.engine=opacus_ghost",),
    ),
    "longest_row_for_user": (
        "own",
        "user measured by its longest row",
        longest_row_for_user,
        (*USERS, "clipping.engine=opacus_hooks"),
    ),
    "grouped_by_mean_rows": (
        "own",
        "rows reshaped to users as if all had the same number",
        grouped_by_mean_rows,
        (*USERS, "privacy.expected_batch_size=4"),
    ),
}
