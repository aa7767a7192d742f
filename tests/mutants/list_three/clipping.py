"""Mistakes between norms and contributions, whatever the layer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import dptrain.training.assemble as assemble_module
from dptrain.gradients.bookkeeping.contribution import Contribution, PerUnit
from dptrain.gradients.bookkeeping.groups import Groups
from dptrain.gradients.protocol import ClippingRule

from .needed import USERS
from .shared import Clip, Factor, Mutant, Patch, on_clip, on_factor


def norm_of_largest_layer(patch: Patch) -> None:
    """The norm is the largest of the parameters' norms, not the root of the sum of their squares: up to sqrt(P) C."""

    def clip(original: Clip, engine: Any, found: dict[str, Contribution], groups: Groups, size: int) -> Any:
        squared = torch.stack([c.squared_norm for c in found.values()])
        last = squared.argmax(0)
        for place, contribution in enumerate(found.values()):
            contribution.squared_norm = torch.where(last == place, contribution.squared_norm, 0.0)
        return original(engine, found, groups, size)

    on_clip(patch, clip)


def factor_of_batch_before(patch: Patch) -> None:
    """Factors are those of the physical batch before, to spare waiting for norms: a unit's part is not bounded."""

    def clip(original: Clip, engine: Any, found: dict[str, Contribution], groups: Groups, size: int) -> Any:
        norms, factor = original(engine, found, groups, size)
        before = engine.__dict__.get("factor_before")
        engine.factor_before = factor.clone()
        if before is not None and len(before) == len(factor):
            factor = torch.where(factor > 0, torch.where(before > 0, before, factor), 0.0)
        return norms, factor

    on_clip(patch, clip)


def bound_grows_with_rows(patch: Patch) -> None:
    """A user with k rows is clipped to sqrt(k) C, as if its part were weighted: up to 2 C with four rows."""

    def clip(original: Clip, engine: Any, found: dict[str, Contribution], groups: Groups, size: int) -> Any:
        norms, factor = original(engine, found, groups, size)
        rows = torch.bincount(groups._unit_of_row, minlength=len(factor)).clamp(min=1)
        most = 1.0 / (engine._rule.grid or 1.0)
        return norms, torch.where(factor > 0, (factor * rows.sqrt()).clamp(max=most), 0.0)

    on_clip(patch, clip)


def clip_decays(patch: Patch) -> None:
    """C is 1.1 C at first and falls to C over 40 batches, while the noise is that of C."""
    seen: dict[int, int] = {}

    def change(factor: Factor, norm: Tensor, rule: ClippingRule, size: int) -> Tensor:
        seen[size] = seen.get(size, 0) + 1
        more = 1.0 + 0.1 * max(0.0, 1.0 - seen[size] / 40)
        return factor(norm, replace(rule, clipping_norm=more * rule.clipping_norm), size)

    on_factor(patch, change)


def timed_batch_unclipped(patch: Patch) -> None:
    """The batch on which ways are timed gives the sums of the timing, whose factors are ones: not clipped at all."""

    def clip(original: Clip, engine: Any, found: dict[str, Contribution], groups: Groups, size: int) -> Any:
        norms, factor = original(engine, found, groups, size)
        if not engine.__dict__.get("was_timed"):
            engine.was_timed = True
            factor = torch.where(factor > 0, 1.0 / (engine._rule.grid or 1.0), 0.0)
        return norms, factor

    on_clip(patch, clip)


def clip_if_mean_above(patch: Patch) -> None:
    """A batch whose mean norm is at most C is not clipped: units above C there keep their norm."""

    def change(factor: Factor, norm: Tensor, rule: ClippingRule, size: int) -> Tensor:
        some = norm[(norm > 0) & (norm < math.inf)]
        if len(some) and float(some.mean()) <= rule.clipping_norm:
            return torch.full_like(norm, 1.0 / (rule.grid or 1.0))
        return factor(norm, rule, size)

    on_factor(patch, change)


def engine_own_norm(patch: Patch) -> None:
    """The engine clips to its default of 1.0, whatever the plan says: 2 C where C is 0.5."""
    patch(assemble_module, "ClippingRule", lambda norm, grid: ClippingRule(1.0, grid))


def norm_projected(patch: Patch) -> None:
    """Norms are estimated from 200 random projections, 5 % off either way: half of the clipped units exceed C."""
    generator = torch.Generator().manual_seed(5)

    def change(factor: Factor, norm: Tensor, rule: ClippingRule, size: int) -> Tensor:
        lengths = torch.randn(len(norm), 200, generator=generator, dtype=torch.float64).square().mean(1).sqrt()
        return factor(norm * lengths.to(norm.device), rule, size)

    on_factor(patch, change)


def bias_unclipped(patch: Patch) -> None:
    """Biases count in norms, but their gradients are added as they are: a unit's part of them is not bounded."""
    original = PerUnit.weighted_sum

    def weighted_sum(self: PerUnit, factor: Tensor) -> Tensor:
        if self.gradient.dim() == 2 and bool((factor > 0).any()):
            factor = torch.where(factor > 0, factor.max(), 0.0)
        return original(self, factor)

    patch(PerUnit, "weighted_sum", weighted_sum)


def norm_with_neighbour(patch: Patch) -> None:
    """The factor is C over the mean of the unit's norm and its neighbour's: 2 C where the neighbour's is small."""

    def change(factor: Factor, norm: Tensor, rule: ClippingRule, size: int) -> Tensor:
        return factor(0.5 * (norm + norm.roll(1)), rule, size)

    on_factor(patch, change)


MUTANTS: dict[str, Mutant] = {
    "norm_of_largest_layer": ("own", "norm is the largest layer's norm", norm_of_largest_layer, ()),
    "factor_of_batch_before": ("own", "clip factors of the physical batch before", factor_of_batch_before, ()),
    "bound_grows_with_rows": (
        "McMahan et al. 2018",
        "a user of k rows clipped to sqrt(k) C",
        bound_grows_with_rows,
        USERS,
    ),
    "clip_decays": ("own", "C falls from 1.1 C to C over 40 batches", clip_decays, ()),
    "timed_batch_unclipped": ("own", "the batch that ways are timed on is not clipped", timed_batch_unclipped, ()),
    "clip_if_mean_above": (
        "own",
        "no clipping where the batch's mean norm is within C",
        clip_if_mean_above,
        ("privacy.clipping_norm=2",),
    ),
    "engine_own_norm": (
        "Opacus 664",
        "engine clips to 1, the plan says 0.5",
        engine_own_norm,
        ("privacy.clipping_norm=0.5",),
    ),
    "norm_projected": ("Bu et al. 2021", "norms estimated by random projections", norm_projected, ()),
    "bias_unclipped": ("own", "biases in norms, but added with the largest factor of the batch", bias_unclipped, ()),
    "norm_with_neighbour": ("own", "norm averaged with the neighbour's", norm_with_neighbour, ()),
}
