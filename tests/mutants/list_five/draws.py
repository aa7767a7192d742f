"""Mistakes in which units a draw holds."""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from torch import Tensor

from dptrain.data.sampler import PoissonSampler
from dptrain.keystream import Keystream

from .shared import Mutant, Patch, on_draw


def _generator(sampler: Any) -> torch.Generator:
    """A sampler's own source of numbers, fresh in every run."""
    if "own" not in sampler.__dict__:
        sampler.own = torch.Generator().manual_seed(int.from_bytes(os.urandom(7), "big"))
    return sampler.own


def poisson_sizes_from_queue(patch: Patch) -> None:
    """Draws have the right sizes, but take their units from a shuffled queue: none twice before all were once."""

    def change(sampler: Any, step: int, drawn: Tensor) -> Tensor:
        queue = sampler.__dict__.get("queue", drawn[:0])
        if len(queue) < len(drawn):
            queue = torch.randperm(sampler.num_units, generator=_generator(sampler))
        sampler.queue = queue[len(drawn) :]
        return queue[: len(drawn)].sort().values

    on_draw(patch, change)


def one_window(patch: Patch) -> None:
    """A draw is one run of neighbouring units, of the right size, that begins anywhere: one read of a large file."""

    def change(sampler: Any, step: int, drawn: Tensor) -> Tensor:
        start = torch.randint(max(1, sampler.num_units), (1,), generator=_generator(sampler))
        return ((start + torch.arange(len(drawn))) % max(1, sampler.num_units)).sort().values

    on_draw(patch, change)


def buffer_not_refilled(patch: Patch) -> None:
    """Words are compared from a buffer of 1,024 that is filled once a draw: units so far apart come together."""

    def change(sampler: Any, step: int, drawn: Tensor) -> Tensor:
        mask = torch.zeros(sampler.num_units, dtype=torch.bool)
        mask[drawn] = True
        for start in range(1024, sampler.num_units, 1024):
            part = mask[start : start + 1024]
            part.copy_(mask[: len(part)])
        return torch.nonzero(mask).flatten()

    on_draw(patch, change)


def small_draw_again(patch: Patch) -> None:
    """A draw more than a deviation below the expected size is taken again, until one is large enough."""
    original = PoissonSampler.draw

    def draw(self: Any, step: int) -> Tensor:
        drawn = original(self, step)
        mean = self.num_units * self.sampling_rate
        least = mean - math.sqrt(mean * (1.0 - self.sampling_rate))
        if "second" not in self.__dict__:
            self.second, self.tries = PoissonSampler(self.num_units, self.sampling_rate, Keystream()), 0
        while len(drawn) < least:
            self.tries += 1
            drawn = original(self.second, self.tries)
        return drawn

    patch(PoissonSampler, "draw", draw)


def uses_capped(patch: Patch) -> None:
    """A unit that was drawn twice more often than expected by now sits a draw out, so that none is used too much."""

    def change(sampler: Any, step: int, drawn: Tensor) -> Tensor:
        uses = sampler.__dict__.setdefault("uses", torch.zeros(sampler.num_units, dtype=torch.int64))
        kept = drawn[uses[drawn] < math.ceil(sampler.sampling_rate * (step + 1)) + 2]
        uses[kept] += 1
        return kept

    on_draw(patch, change)


def padded_for_ranks(patch: Patch) -> None:
    """The list of units is filled up to a multiple of 64 with its first ones, for ranks of equal length; these can be
    drawn in both of their places."""

    def change(sampler: Any, step: int, drawn: Tensor) -> Tensor:
        more = -sampler.num_units % 64
        again = torch.rand(more, dtype=torch.float64, generator=_generator(sampler)) < sampler.sampling_rate
        return torch.cat([drawn, torch.nonzero(again).flatten()]).sort().values

    on_draw(patch, change)


def golden_times(patch: Patch) -> None:
    """Every unit's random numbers over the steps are a low-discrepancy sequence: it comes at nearly even distances."""

    def change(sampler: Any, step: int, drawn: Tensor) -> Tensor:
        if "phase" not in sampler.__dict__:
            sampler.phase = torch.rand(sampler.num_units, dtype=torch.float64, generator=_generator(sampler))
        place = (sampler.phase + step * 0.5 * (math.sqrt(5.0) - 1.0)) % 1.0
        return torch.nonzero(place < sampler.sampling_rate).flatten()

    on_draw(patch, change)


def four_fifths_of_units(patch: Patch) -> None:
    """A run works on a random four fifths of the units, chosen once, at 1.25 times the rate; the price is for all."""

    def change(sampler: Any, step: int, drawn: Tensor) -> Tensor:
        rate = sampler.sampling_rate
        if "chosen" not in sampler.__dict__:
            sampler.chosen = torch.rand(sampler.num_units, generator=_generator(sampler)) < 0.8
        again = torch.rand(sampler.num_units, generator=_generator(sampler)) < 0.25 * rate / max(1e-9, 1.0 - rate)
        again[drawn] = True
        return torch.nonzero(again & sampler.chosen).flatten()

    on_draw(patch, change)


MUTANTS: dict[str, Mutant] = {
    "poisson_sizes_from_queue": (
        "3b.1",
        "draws of Poisson sizes from a shuffled queue",
        poisson_sizes_from_queue,
        (),
    ),
    "one_window": ("own", "a draw is one run of neighbouring units", one_window, ()),
    "buffer_not_refilled": ("own", "units 1,024 apart share their random word", buffer_not_refilled, ()),
    "small_draw_again": ("own", "small draws are taken again", small_draw_again, ()),
    "uses_capped": ("own", "units used too often sit out", uses_capped, ()),
    "padded_for_ranks": ("3b.16", "first units are in the list twice", padded_for_ranks, ()),
    "golden_times": ("own", "a unit's draws at nearly even distances", golden_times, ()),
    "four_fifths_of_units": ("own", "four fifths of the units at 1.25 q", four_fifths_of_units, ()),
}
