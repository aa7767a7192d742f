"""Mistakes in the engines beside bookkeeping."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import dptrain.gradients.loop as loop_module
import dptrain.gradients.opacus_hooks as hooks_module
import dptrain.gradients.vmap as vmap_module
from dptrain.data.batches import PhysicalBatch
from dptrain.gradients.clip import clip_factor
from dptrain.gradients.loop import LoopEngine
from dptrain.gradients.opacus_ghost import OpacusGhostEngine
from dptrain.gradients.protocol import ClippingRule, UnitStats

from .needed import USERS
from .shared import Mutant, Patch


def ghost_run_before(patch: Patch) -> None:
    """Beyond 512 rows, a run of rows is scaled by the norms of the run before: no bound for its rows."""
    original = OpacusGhostEngine._passes

    def passes(self: Any, batch: PhysicalBatch) -> Any:
        self.norms_before = None
        try:
            return original(self, batch)
        finally:
            self.norms_before = None

    factors = OpacusGhostEngine._factor

    def factor(self: Any, norms: Tensor, sizes: Tensor, size: int) -> Tensor:
        before = self.__dict__.get("norms_before")
        self.norms_before = norms.clone()
        if before is not None and len(before) >= len(norms):
            live = (norms > 0) & (before[: len(norms)] > 0)
            norms = torch.where(live, before[: len(norms)], norms)
        return factors(self, norms, sizes, size)

    patch(OpacusGhostEngine, "_passes", passes)
    patch(OpacusGhostEngine, "_factor", factor)


def ghost_gain_unchecked(patch: Patch) -> None:
    """Factors of large batches are brought to a mean of 1/2, to make up for clipping: units above C where all are."""
    original = OpacusGhostEngine._factor

    def factor(self: OpacusGhostEngine, norms: Tensor, sizes: Tensor, size: int) -> Tensor:
        found = original(self, norms, sizes, size)
        return found * (0.5 / found.mean()).clamp(min=1.0) if len(found) > 32 else found

    patch(OpacusGhostEngine, "_factor", factor)


def hooks_gradients_left(patch: Patch) -> None:
    """Gradients of rows are not cleared between batches: a slot still holds half of the unit that it had before."""
    original = hooks_module.add_clipped_rows
    held: dict[tuple[int, ...], list[Tensor]] = {}

    def add(grads: Any, unit: Tensor, weight: Tensor, rule: ClippingRule, total: Tensor) -> Tensor:
        key = len(total), len(weight)
        left = [g + 0.5 * b for g, b in zip(grads, held[key], strict=True)] if key in held else list(grads)
        held[key] = [g.detach().clone() for g in grads]
        return original(left, unit, weight, rule, total)

    patch(hooks_module, "add_clipped_rows", add)


def hooks_one_factor(patch: Patch) -> None:
    """Under hooks the factor is of the root mean square of norms in the physical batch, one for all of its units."""
    original = hooks_module.add_clipped_rows

    def add(grads: Any, unit: Tensor, weight: Tensor, rule: ClippingRule, total: Tensor) -> Tensor:
        squared = sum(g.reshape(len(g), -1).double().square().sum(1) for g in grads)
        assert isinstance(squared, Tensor)
        live = weight != 0
        if not bool(live.any()) or not bool(squared[live].isfinite().all()):
            return original(grads, unit, weight, rule, total)
        factor = clip_factor(squared[live].mean().sqrt(), ClippingRule(rule.clipping_norm, rule.grid), len(total))
        whole = torch.cat([(g.reshape(len(g), -1).double() * (live * factor)[:, None]) for g in grads], 1)
        total += (whole if rule.grid is None else whole.round()).sum(0)
        return torch.where(live, squared.sqrt(), 0.0)

    patch(hooks_module, "add_clipped_rows", add)


def vmap_first_rows_norm(patch: Patch) -> None:
    """A user's norm is that of its first row times the root of its rows, as if these shared nothing: up to 2 C."""
    original = vmap_module.add_clipped_rows

    def add(grads: list[Tensor], unit: Tensor, weight: Tensor, rule: ClippingRule, total: Tensor) -> Tensor:
        live = torch.nonzero(weight).flatten()
        owners = unit[live]
        flat = torch.cat([g.reshape(len(g), -1).double() for g in grads], 1)
        norms = original(grads, unit, weight, rule, torch.zeros_like(total))
        for slot in torch.unique(owners).tolist():
            rows = live[owners == slot]
            if math.isfinite(float(norms[slot])):
                part = flat[rows].sum(0) * clip_factor(flat[rows[0]].norm() * math.sqrt(len(rows)), rule, len(total))
                total += part if rule.grid is None else part.round()
        return norms

    patch(vmap_module, "add_clipped_rows", add)


def vmap_value_clipped(patch: Patch) -> None:
    """Every value is clipped to +-C, and the norm is not: up to sqrt(D) C."""

    def add(grads: list[Tensor], unit: Tensor, weight: Tensor, rule: ClippingRule, total: Tensor) -> Tensor:
        live = weight != 0
        flat = torch.cat([g.reshape(len(g), -1).double() for g in grads], 1)
        norms = torch.where(live, flat.norm(dim=1), 0.0)
        kept = flat[live & (norms < math.inf)].clamp(-rule.clipping_norm, rule.clipping_norm) / (rule.grid or 1.0)
        total += (kept if rule.grid is None else kept.round()).sum(0)
        return norms

    patch(vmap_module, "add_clipped_rows", add)


def loop_gradient_kept(patch: Patch) -> None:
    """The gradient in hand is not set to zero between units: a fifth of the unit before is in the next."""

    def add(self: LoopEngine, batch: PhysicalBatch, total: Tensor) -> UnitStats:
        norms = torch.zeros(batch.num_slots, dtype=torch.float64)
        losses = torch.zeros(batch.num_slots)
        gradient = torch.zeros_like(total)
        live = batch.weight != 0
        for slot in torch.unique(batch.unit[live]).tolist():
            gradient = 0.2 * gradient
            for row in torch.nonzero((batch.unit == slot) & live).flatten().tolist():
                losses[row], values = self._gradient_of_row(batch, row)
                gradient = gradient + values
            norms[slot] = gradient.norm()
            part = gradient * clip_factor(gradient.norm(), self._rule, len(total))
            total += part if self._rule.grid is None else part.round()
        return UnitStats(norms, losses)

    patch(LoopEngine, "add_clipped_sum", add)


def loop_root_mean_square(patch: Patch) -> None:
    """Norms are root mean squares: low by sqrt(D), so that next to nothing is clipped."""
    original = loop_module.clip_factor
    patch(loop_module, "clip_factor", lambda norm, rule, size: original(norm / math.sqrt(size), rule, size))


VMAP, HOOKS, GHOST = ("clipping.engine=vmap",), ("clipping.engine=opacus_hooks",), ("clipping.engine=opacus_ghost",)
MANY = ("execution.physical_batch_size=700", "privacy.expected_batch_size=640")
LOOP = ("clipping.engine=loop", "privacy.expected_batch_size=16", "privacy.steps=24")

MUTANTS: dict[str, Mutant] = {
    "ghost_run_before": ("own", "beyond 512 rows, ghost norms of the run before", ghost_run_before, (*MANY, *GHOST)),
    "ghost_gain_unchecked": ("own", "ghost factors brought to a mean of 1/2", ghost_gain_unchecked, GHOST),
    "hooks_gradients_left": ("3b.9", "half of the batch before in row gradients", hooks_gradients_left, HOOKS),
    "hooks_one_factor": ("own", "one factor for a batch, by its mean norm", hooks_one_factor, HOOKS),
    "vmap_first_rows_norm": ("own", "user measured by its first row", vmap_first_rows_norm, (*USERS, *VMAP)),
    "vmap_value_clipped": ("Truxify 3844", "values clipped, not norms", vmap_value_clipped, VMAP),
    "loop_gradient_kept": ("own", "a fifth of the unit before", loop_gradient_kept, LOOP),
    "loop_root_mean_square": ("own", "root mean squares for norms", loop_root_mean_square, LOOP),
}
