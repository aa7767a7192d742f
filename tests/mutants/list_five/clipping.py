"""Mistakes between norms and the clipped sum, in the engine that is taken by itself."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dptrain.gradients.bookkeeping.contribution import Contribution, Outer, PerUnit
from dptrain.gradients.bookkeeping.groups import Groups
from dptrain.gradients.bookkeeping.walk import Graph, SecondWalk
from dptrain.noise.secure import SecureNoise
from dptrain.training.loop import Trainer

from .needed import LIMIT, own
from .shared import Clip, Mutant, Patch, grid_of, on_clip, on_noise

Found = dict[str, Contribution]


def factors_in_sorted_order(patch: Patch) -> None:
    """Norms are sorted, for a quantile that is shown; the clip factors are made of the sorted ones."""

    def change(original: Clip, engine: Any, found: Found, groups: Groups, size: int) -> Any:
        norms, factor = original(engine, found, groups, size)
        live = torch.nonzero(groups.live).flatten()
        factor = factor.clone()
        factor[live] = factor[live][torch.argsort(norms[live])]
        return norms, factor

    on_clip(patch, change)


def nan_factor_is_one(patch: Patch) -> None:
    """Factors that are not numbers become 1, and values that are not numbers 0: what is left of a unit is unclipped."""

    def change(original: Clip, engine: Any, found: Found, groups: Groups, size: int) -> Any:
        bad = torch.zeros(groups.num_units, dtype=torch.bool, device=groups.slots.device)
        for contribution in found.values():
            bad |= ~contribution.squared_norm.isfinite()
        for contribution in found.values():
            contribution.squared_norm = torch.where(bad, 0.0, contribution.squared_norm)
            if isinstance(contribution, PerUnit):
                contribution.gradient = contribution.gradient.nan_to_num(0.0, 0.0, 0.0)
            elif isinstance(contribution, Outer):
                contribution.a, contribution.g = (v.nan_to_num(0.0, 0.0, 0.0) for v in (contribution.a, contribution.g))
        return original(engine, found, groups, size)

    on_clip(patch, change)


def loss_scale_grows_in_between(patch: Patch) -> None:
    """The loss is scaled for 16-bit floats, twice as much after every 16 batches; in a batch where it grows, norms are
    divided by the old scale and the sum is not."""
    batches: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def change(original: Clip, engine: Any, found: Found, groups: Groups, size: int) -> Any:
        norms, factor = original(engine, found, groups, size)
        batches[engine] = batches.get(engine, 0) + 1
        return norms, factor * (2.0 if batches[engine] % 16 == 0 else 1.0)

    on_clip(patch, change)


def last_units_unclipped(patch: Patch) -> None:
    """Factors are computed for 32 units at a time; those behind the last whole 32 keep the 1 they began with."""

    def change(original: Clip, engine: Any, found: Found, groups: Groups, size: int) -> Any:
        norms, factor = original(engine, found, groups, size)
        live = torch.nonzero(groups.live & norms.isfinite()).flatten()
        factor = factor.clone()
        factor[live[len(live) // 32 * 32 :]] = 1.0 / grid_of(engine)
        return norms, factor

    on_clip(patch, change)


def norm_picked_from_first_batch(patch: Patch) -> None:
    """C is set to the median norm of the first physical batch; the noise follows, and nobody pays for the choice."""
    picked: dict[str, float] = {}
    built = Trainer.__post_init__

    def begun(self: Trainer) -> None:
        picked.clear()
        built(self)

    def change(original: Clip, engine: Any, found: Found, groups: Groups, size: int) -> Any:
        if "norm" not in picked:
            squared = torch.stack([c.squared_norm for c in found.values()]).sum(0)[groups.live]
            picked["norm"] = float(squared.sqrt().median()) or engine._rule.clipping_norm
            picked["share"] = picked["norm"] / engine._rule.clipping_norm
        engine._rule = replace(engine._rule, clipping_norm=picked["norm"])
        return original(engine, found, groups, size)

    def scaled(noise: SecureNoise, step: int, whole: Tensor) -> Tensor:
        return (whole * picked.get("share", 1.0)).round()

    patch(Trainer, "__post_init__", begun)
    on_clip(patch, change)
    on_noise(patch, scaled)


def activations_in_float8(patch: Patch) -> None:
    """Inputs of linear maps wait for the sum in 8 bits; norms were taken of what they were before."""
    original = Outer._sides

    def sides(self: Outer, factor: Tensor, run: slice) -> tuple[Tensor, Tensor]:
        held = self.a
        self.a = held.to(torch.float8_e5m2).to(held.dtype)
        try:
            return original(self, factor, run)
        finally:
            self.a = held

    patch(Outer, "_sides", sides)


def later_runs_unclipped(patch: Patch) -> None:
    """Where a limit on memory cuts a batch into runs, all behind the first are added with the largest factor."""
    original = Outer.add_to

    def add_to(self: Outer, total: Tensor, factor: Tensor) -> bool:
        return original(self, total, torch.where(factor > 0, factor.max(), 0.0))

    patch(Outer, "add_to", add_to)


def second_walk_clips_as_it_goes(patch: Patch) -> None:
    """The second of two backward passes takes its factors from the norms that it has added up so far."""
    take, walk = SecondWalk.take, Graph.walk_for_sum

    def walked(self: Graph, second: SecondWalk, clipping_norm: float) -> None:
        second.__dict__["bound"] = clipping_norm
        walk(self, second, clipping_norm)

    def taken(self: SecondWalk, name: str, contribution: Contribution) -> None:
        whole, bound = self.factor, self.__dict__["bound"]
        so_far = (self.squared + contribution.squared_norm).sqrt()
        self.factor = whole * torch.where(whole > 0, self.norms.clamp(min=bound) / so_far.clamp(min=bound), 0.0)
        take(self, name, contribution)
        self.factor = whole

    patch(Graph, "walk_for_sum", walked)
    patch(SecondWalk, "take", taken)


MUTANTS: dict[str, Mutant] = {
    "factors_in_sorted_order": ("own", "clip factors in the order of the norms", factors_in_sorted_order, ()),
    "nan_factor_is_one": (
        "3a NaN cleaned after",
        "what is finite of a bad unit is not clipped",
        nan_factor_is_one,
        own("rooted"),
    ),
    "loss_scale_grows_in_between": (
        "own",
        "every 16th batch is added twice as large",
        loss_scale_grows_in_between,
        ("execution.dtype=bfloat16",),
    ),
    "last_units_unclipped": ("own", "units behind the last whole 32 are not clipped", last_units_unclipped, ()),
    "norm_picked_from_first_batch": (
        "3b.13, 3b.30",
        "C is the median norm of the first private batch",
        norm_picked_from_first_batch,
        (),
    ),
    "activations_in_float8": ("own", "sums of inputs kept in 8 bits, norms of exact ones", activations_in_float8, ()),
    "later_runs_unclipped": ("own", "runs behind the first share one factor", later_runs_unclipped, LIMIT),
    "second_walk_clips_as_it_goes": (
        "Li et al. 2022",
        "second backward pass clips by the norm so far",
        second_walk_clips_as_it_goes,
        ("execution.checkpoint=['1']", "privacy.noise=fast"),
    ),
}
