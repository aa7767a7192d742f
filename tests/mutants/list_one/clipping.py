"""Mistakes in clipping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dptrain.data.batches import PhysicalBatch
from dptrain.gradients import clip, vmap
from dptrain.gradients.bookkeeping import contribution, engine
from dptrain.gradients.bookkeeping.engine import BookkeepingEngine
from dptrain.gradients.bookkeeping.groups import Groups
from dptrain.gradients.draw_sum import DrawSum

from .shared import VMAP, Mutant, Patch, temporarily


def clip_factors(change: Callable[[Tensor, Any], Tensor]) -> Callable[[Patch], None]:
    def apply(patch: Patch) -> None:
        def factor(norm: Tensor, rule: Any, size: int) -> Tensor:
            return change(norm, rule) / (rule.grid or 1.0)

        for place in (clip, engine):
            patch(place, "clip_factor", factor)

    return apply


def clip_off(norm: Tensor, rule: Any) -> Tensor:
    return torch.ones_like(norm)


def clip_at_110(norm: Tensor, rule: Any) -> Tensor:
    return (1.1 * rule.clipping_norm / norm).clamp(max=1.0)


def clip_scales_up(norm: Tensor, rule: Any) -> Tensor:
    return torch.where(norm > 0, rule.clipping_norm / norm, 0.0)


def clip_in_half_precision(norm: Tensor, rule: Any) -> Tensor:
    return (rule.clipping_norm / norm.half().double()).clamp(max=1.0)


def clip_by_squared_norm(norm: Tensor, rule: Any) -> Tensor:
    return (rule.clipping_norm / norm.square()).clamp(max=1.0)


def clip_soft(norm: Tensor, rule: Any) -> Tensor:
    return 1.0 / (1.0 + norm / (4.0 * rule.clipping_norm))


def clip_per_physical_batch(patch: Patch) -> None:
    original = BookkeepingEngine.clipped_parts

    def parts(self: Any, batch: PhysicalBatch) -> Any:
        with temporarily(engine, "clip_factor", lambda norm, rule, size: torch.full_like(norm, 1 / (rule.grid or 1))):
            pieces, stats = original(self, batch)
        whole = float(torch.cat([p.reshape(-1).double() for p in pieces]).norm()) * (self._rule.grid or 1.0)
        factor = min(1.0, self._rule.clipping_norm / max(whole, 1e-30))
        return [piece * factor for piece in pieces], stats

    patch(BookkeepingEngine, "clipped_parts", parts)


def clip_per_layer(patch: Patch) -> None:
    original = clip.add_clipped_rows

    def rows(grads: Any, unit: Tensor, weight: Tensor, rule: Any, total: Tensor) -> Tensor:
        start, squared = 0, torch.zeros(len(weight), dtype=torch.float64)
        for grad in grads:
            stop = start + grad[0].numel()
            squared += original([grad], unit, weight, rule, total[start:stop]).square()
            start = stop
        return squared.sqrt()

    patch(vmap, "add_clipped_rows", rows)


def clip_per_row(patch: Patch) -> None:
    patch(engine, "Groups", lambda unit, weight: Groups(torch.arange(len(unit)), weight))


def norm_of_some_layers(patch: Patch) -> None:
    original = BookkeepingEngine._clip

    def some(self: Any, contributions: dict[str, Any], groups: Any, size: int) -> Any:
        return original(self, dict(list(contributions.items())[:1]), groups, size)

    patch(BookkeepingEngine, "_clip", some)


def norm_without_tied_cross_term(patch: Patch) -> None:
    original = contribution.Tied.of.__func__

    def of(cls: Any, outer: Any, table: Any) -> Any:
        made = original(cls, outer, table)
        made.squared_norm = outer.squared_norm + table.squared_norm
        return made

    patch(contribution.Tied, "of", classmethod(of))


def nan_unit_passes(patch: Patch) -> None:
    original = BookkeepingEngine._clip

    def careless(self: Any, contributions: dict[str, Any], groups: Any, size: int) -> Any:
        for one in contributions.values():
            one.silence = lambda dead: None
        norms, factor = original(self, contributions, groups, size)
        return norms, torch.where(norms.isfinite(), factor, float("nan"))

    patch(BookkeepingEngine, "_clip", careless)


def nan_cleaned_after_the_sum(patch: Patch) -> None:
    nan_unit_passes(patch)
    original = DrawSum.add

    def add(self: Any, *given: Any, **named: Any) -> Any:
        stats = original(self, *given, **named)
        self.flat().nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        return stats

    patch(DrawSum, "add", add)


def nan_unit_blanks_its_batch(patch: Patch) -> None:
    original = BookkeepingEngine.clipped_parts

    def parts(self: Any, batch: PhysicalBatch) -> Any:
        pieces, stats = original(self, batch)
        dead = not bool(stats.norms.isfinite().all())
        return [piece * 0 if dead else piece for piece in pieces], stats

    patch(BookkeepingEngine, "clipped_parts", parts)


MUTANTS: dict[str, Mutant] = {
    "clip_off": ("3b.4", "no clipping", clip_factors(clip_off), ()),
    "clip_110": ("3b.4", "clipped at 1.1 C", clip_factors(clip_at_110), ()),
    "clip_scales_up": ("own", "short gradients are made C long", clip_factors(clip_scales_up), ()),
    "clip_soft": ("own", "a smooth factor that does not bound", clip_factors(clip_soft), ()),
    "clip_squared_norm": ("own", "clipped by the squared norm", clip_factors(clip_by_squared_norm), ()),
    "norm_float16": ("3b.25", "norms in float16", clip_factors(clip_in_half_precision), ()),
    "clip_per_physical_batch": ("3b.10", "the physical batch's sum is clipped", clip_per_physical_batch, ()),
    "clip_per_layer": ("own", "each parameter is clipped to C by itself", clip_per_layer, VMAP),
    "clip_per_row": ("3b.14, 3b.31", "each row of a unit is clipped by itself", clip_per_row, ()),
    "norm_some_layers": ("own", "norm of the first parameter only", norm_of_some_layers, ()),
    "norm_tied": (
        "3b.21",
        "norm without the cross-term of tied weights",
        norm_without_tied_cross_term,
        ("data=own", "data.name=mutants_tokens", "model=own", "model.name=mutants_tied"),
    ),
    "nan_passes": ("3a non-finite, 3b.24", "a unit that is not a number enters the sum", nan_unit_passes, ()),
    "nan_cleaned_late": (
        "3a NaN cleaned after",
        "the sum is cleaned of NaN, not the unit",
        nan_cleaned_after_the_sum,
        (),
    ),
    "nan_blanks_batch": ("3b.24", "a bad unit silences its physical batch", nan_unit_blanks_its_batch, ()),
}
