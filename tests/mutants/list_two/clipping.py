"""Mistakes in clip factors."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dptrain.gradients.bookkeeping.engine import BookkeepingEngine
from dptrain.gradients.bookkeeping.groups import Groups
from dptrain.gradients.protocol import ClippingRule

from .shared import Factor, Mutant, Patch, _on_factor


def clip_tolerance(patch: Patch) -> None:
    """Norms up to 5 % above C count as within it."""

    def change(factor: Factor, norm: Tensor, rule: ClippingRule, size: int) -> Tensor:
        return torch.where(norm <= 1.05 * rule.clipping_norm, 1.0 / (rule.grid or 1.0), factor(norm, rule, size))

    _on_factor(patch, change)


def clip_epsilon_inside(patch: Patch) -> None:
    """C / (norm - 0.01 C): the small constant that keeps off division by 0 has the wrong sign."""

    def change(factor: Factor, norm: Tensor, rule: ClippingRule, size: int) -> Tensor:
        return factor((norm - 0.01 * rule.clipping_norm).clamp(min=0.0), rule, size)

    _on_factor(patch, change)


def norm_in_bfloat16(patch: Patch) -> None:
    """Norms are kept in bfloat16, half of them rounded down."""
    _on_factor(patch, lambda factor, norm, rule, size: factor(norm.bfloat16().double(), rule, size))


def norm_saturates(patch: Patch) -> None:
    """Norms above 100 C count as 100 C."""
    _on_factor(patch, lambda factor, norm, rule, size: factor(norm.clamp(max=100.0 * rule.clipping_norm), rule, size))


def smallest_dropped(patch: Patch) -> None:
    """The unit with the smallest gradient of a physical batch is left out."""

    def change(factor: Factor, norm: Tensor, rule: ClippingRule, size: int) -> Tensor:
        found = factor(norm, rule, size)
        if int((norm > 0).sum()) > 1:
            found[torch.where(norm > 0, norm, math.inf).argmin()] = 0.0
        return found

    _on_factor(patch, change)


def clip_at_batch_mean(patch: Patch) -> None:
    """C is lowered to the mean norm of the physical batch where that is smaller."""

    def change(factor: Factor, norm: Tensor, rule: ClippingRule, size: int) -> Tensor:
        some = norm[(norm > 0) & (norm < math.inf)]
        mean = float(some.mean()) if len(some) else rule.clipping_norm
        return factor(norm, replace(rule, clipping_norm=max(1e-6, min(rule.clipping_norm, mean))), size)

    _on_factor(patch, change)


def adaptive_norm(patch: Patch) -> None:
    """C follows the median norm of the batch before, between half of C and C, without noise."""
    original = BookkeepingEngine._clip

    def clip(self: Any, contributions: Any, groups: Groups, size: int) -> tuple[Tensor, Tensor]:
        norms, factor = original(self, contributions, groups, size)
        self.__dict__.setdefault("first_norm", self._rule.clipping_norm)
        some = norms[(norms > 0) & (norms < math.inf)]
        if len(some):
            middle = min(max(float(some.median()), 0.5 * self.first_norm), self.first_norm)
            self._rule = replace(self._rule, clipping_norm=middle)
        return norms, factor

    patch(BookkeepingEngine, "_clip", clip)


MUTANTS: dict[str, Mutant] = {
    "clip_tolerance": ("own", "norms up to 1.05 C are not clipped", clip_tolerance, ()),
    "clip_epsilon_inside": ("own", "C / (norm - 0.01 C)", clip_epsilon_inside, ()),
    "norm_in_bfloat16": ("own", "norms rounded to bfloat16", norm_in_bfloat16, ()),
    "norm_saturates": ("own", "norms above 100 C count as 100 C", norm_saturates, ()),
    "smallest_dropped": ("own", "unit of the smallest norm of a batch left out", smallest_dropped, ()),
    "clip_at_batch_mean": ("own", "C lowered to the batch's mean norm", clip_at_batch_mean, ()),
    "adaptive_norm": ("Andrew et al. 2021", "C follows the median norm, without noise", adaptive_norm, ()),
}
