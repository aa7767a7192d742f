"""Mistakes in draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from dptrain.data import batches
from dptrain.data.batches import PhysicalBatch
from dptrain.data.sampler import PoissonSampler
from dptrain.keystream import Keystream

from .shared import Mutant, Patch


def sampler_draws(change: Callable[[Any, Tensor, int], Tensor]) -> Callable[[Patch], None]:
    def apply(patch: Patch) -> None:
        original = PoissonSampler.draw

        def draw(self: Any, step: int) -> Tensor:
            return change(self, original(self, step), step)

        patch(PoissonSampler, "draw", draw)

    return apply


def shuffled(self: Any, drawn: Tensor, step: int) -> Tensor:
    size = max(1, round(self.num_units * self.sampling_rate))
    every = -(-self.num_units // size)
    if step % every == 0:
        self.order = torch.randperm(self.num_units)
    return self.order[(step % every) * size : (step % every + 1) * size].sort().values


def fixed_size(self: Any, drawn: Tensor, step: int) -> Tensor:
    return torch.randperm(self.num_units)[: round(self.num_units * self.sampling_rate)].sort().values


def balls_and_bins(self: Any, drawn: Tensor, step: int) -> Tensor:
    every = round(1 / self.sampling_rate)
    if step % every == 0:
        self.bins = torch.randint(0, every, (self.num_units,))
    return torch.nonzero(self.bins == step % every).flatten()


def with_replacement(self: Any, drawn: Tensor, step: int) -> Tensor:
    return torch.randint(0, self.num_units, (len(drawn),)).sort().values


def repeated(self: Any, drawn: Tensor, step: int) -> Tensor:
    kept = getattr(self, "kept", drawn) if step % 8 == 5 else drawn
    self.kept = drawn
    return kept


def twin_masks(self: Any, drawn: Tensor, step: int) -> Tensor:
    half = self.num_units // 2
    first = drawn[drawn < half]
    return torch.cat([first, first + half])


def truncated(self: Any, drawn: Tensor, step: int) -> Tensor:
    return drawn[: max(1, round(1.3 * self.num_units * self.sampling_rate))]


def never_empty(self: Any, drawn: Tensor, step: int) -> Tensor:
    least = max(1, round(0.7 * self.num_units * self.sampling_rate))
    return drawn if len(drawn) >= least else torch.randperm(self.num_units)[:least].sort().values


def sampler_rate(factor: float) -> Callable[[Patch], None]:
    def apply(patch: Patch) -> None:
        original = PoissonSampler.__init__
        patch(PoissonSampler, "__init__", lambda self, n, q, stream: original(self, n, min(1.0, q * factor), stream))

    return apply


def sampler_from_seed(patch: Patch) -> None:
    original = PoissonSampler.__init__
    patch(
        PoissonSampler,
        "__init__",
        lambda self, n, q, stream: original(self, n, q, Keystream(test_key=b"s" * 32)),
    )


def empty_draw_gets_a_dummy(patch: Patch) -> None:
    original = batches._pack

    def pack(draw: Tensor, *rest: Any) -> Iterator[PhysicalBatch]:
        return original(draw if len(draw) else torch.tensor([0]), *rest)

    patch(batches, "_pack", pack)


MUTANTS: dict[str, Mutant] = {
    "rate_double": ("3b.16", "sampled at twice the rate", sampler_rate(2.0), ()),
    "rate_110": ("3b.2", "sampled at 1.1 times the rate", sampler_rate(1.1), ()),
    "shuffle": ("3a poisson_sampling=False, 3b.1", "shuffled batches", sampler_draws(shuffled), ()),
    "fixed_size": ("3b.1", "draws of one size, without replacement", sampler_draws(fixed_size), ()),
    "balls_and_bins": ("3b.1", "each unit in one random step of an epoch", sampler_draws(balls_and_bins), ()),
    "with_replacement": ("3b.14", "a unit can be in a draw twice", sampler_draws(with_replacement), ()),
    "draw_repeated": ("3b.8", "one draw in eight is the one before", sampler_draws(repeated), ()),
    "rank_masks_equal": (
        "3a same seed per rank, 3b.17",
        "two halves draw the same places",
        sampler_draws(twin_masks),
        (),
    ),
    "draw_truncated": ("own", "large draws are cut to a largest size", sampler_draws(truncated), ()),
    "draw_filled_up": ("3a dummy record", "small draws are filled up", sampler_draws(never_empty), ()),
    "sampler_seeded": ("3a resume", "draws from a fixed seed", sampler_from_seed, ()),
    "empty_draw_dummy": ("3a dummy record", "an empty draw gets a unit", empty_draw_gets_a_dummy, ()),
}
