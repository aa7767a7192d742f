"""Mistakes in draws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dptrain.training.assemble as assemble_module
from dptrain.data.batches import UnitIndex
from dptrain.data.sampler import PoissonSampler
from dptrain.keystream import Keystream, Purpose

from .needed import RARE
from .shared import Mutant, Patch, _on_draw


def rate_2_percent(patch: Patch) -> None:
    """Units are drawn with 1.02 q."""
    original = PoissonSampler.__init__

    def more(self: PoissonSampler, num_units: int, sampling_rate: float, keystream: Keystream) -> None:
        original(self, num_units, sampling_rate, keystream)
        self._threshold = min(1 << 64, int(1.02 * sampling_rate * 2.0**64))

    patch(PoissonSampler, "__init__", more)


def rate_of_found_units(patch: Patch) -> None:
    """q is the expected batch over the units found, not over the declared public size of 2,000."""
    found = [0]

    def counted(unit_id: Tensor) -> UnitIndex:
        index = UnitIndex(unit_id)
        found[0] = index.num_units
        return index

    def sampler(num_units: int, sampling_rate: float, keystream: Keystream) -> PoissonSampler:
        return PoissonSampler(num_units, min(1.0, sampling_rate * 2000 / max(found[0], 1)), keystream)

    patch(assemble_module, "UnitIndex", counted)
    patch(assemble_module, "PoissonSampler", sampler)


def first_unit_always(patch: Patch) -> None:
    """Unit 0 is in every draw."""
    _on_draw(patch, lambda sampler, step, draw: torch.unique(torch.cat([torch.zeros(1, dtype=torch.int64), draw])))


def never_empty(patch: Patch) -> None:
    """An empty draw is made up for by one unit drawn at random."""

    def change(sampler: PoissonSampler, step: int, draw: Tensor) -> Tensor:
        return draw if len(draw) else torch.randint(0, max(sampler.num_units, 1), (1,))

    _on_draw(patch, change)


def draw_capped(patch: Patch) -> None:
    """A draw is cut off at two deviations above its expected size."""

    def change(sampler: PoissonSampler, step: int, draw: Tensor) -> Tensor:
        mean = sampler.num_units * sampler.sampling_rate
        return draw[: math.floor(mean + 2.0 * math.sqrt(mean))]

    _on_draw(patch, change)


def neighbours_together(patch: Patch) -> None:
    """Two neighbouring units share the random word that decides about them."""

    def draw(self: PoissonSampler, step: int) -> Tensor:
        words = self._keystream.open(Purpose.DRAW, step).uint64(self.num_units)
        words = np.repeat(words[::2], 2)[: self.num_units]
        return torch.from_numpy(np.flatnonzero(words < np.uint64(min(self._threshold, 2**64 - 1))))

    patch(PoissonSampler, "draw", draw)


def not_twice_running(patch: Patch) -> None:
    """A unit is not drawn in two steps running; others are drawn with q / (1 - q), so that all have q on average."""

    def draw(self: Any, step: int) -> Tensor:
        words = self._keystream.open(Purpose.DRAW, step).uint64(self.num_units)
        first = "resting" not in self.__dict__
        resting = np.zeros(self.num_units, dtype=bool) if first else self.resting
        rate = self.sampling_rate if first else min(1.0, self.sampling_rate / max(1e-9, 1.0 - self.sampling_rate))
        drawn = (words < np.uint64(min(int(rate * 2.0**64), 2**64 - 1))) & ~resting
        self.resting = drawn
        return torch.from_numpy(np.flatnonzero(drawn))

    patch(PoissonSampler, "draw", draw)


def with_replacement(patch: Patch) -> None:
    """As many units as a Poisson draw has, drawn with replacement: one may come twice."""

    def change(sampler: PoissonSampler, step: int, draw: Tensor) -> Tensor:
        return torch.randint(0, max(sampler.num_units, 1), (len(draw),)).sort().values

    _on_draw(patch, change)


def first_draw_doubled(patch: Patch) -> None:
    """The first draw has twice the rate."""
    original = PoissonSampler.draw

    def draw(self: PoissonSampler, step: int) -> Tensor:
        held = self._threshold
        self._threshold = min(1 << 64, 2 * held) if step == 0 else held
        try:
            return original(self, step)
        finally:
            self._threshold = held

    patch(PoissonSampler, "draw", draw)


def public_draws(patch: Patch) -> None:
    """Draws come from a generator seeded by the step's number, which everybody knows."""

    def draw(self: PoissonSampler, step: int) -> Tensor:
        self._keystream.open(Purpose.DRAW, step)
        return torch.from_numpy(np.flatnonzero(np.random.default_rng(step).random(self.num_units) < self.sampling_rate))

    patch(PoissonSampler, "draw", draw)


MUTANTS: dict[str, Mutant] = {
    "rate_2_percent": ("own", "units drawn with 1.02 q", rate_2_percent, ()),
    "rate_of_found_units": (
        "own",
        "q from the private number of units",
        rate_of_found_units,
        ("data.public_size=2000", "privacy.adjacency=add_remove"),
    ),
    "first_unit_always": ("own", "unit 0 in every draw", first_unit_always, ()),
    "never_empty": ("own", "an empty draw gets a unit at random", never_empty, RARE),
    "draw_capped": ("own", "draws end two deviations above their mean", draw_capped, ()),
    "neighbours_together": ("own", "neighbouring units share their random word", neighbours_together, ()),
    "not_twice_running": ("own", "no unit in two draws running, rate kept", not_twice_running, ()),
    "with_replacement": ("own", "units drawn with replacement", with_replacement, ()),
    "first_draw_doubled": ("own", "first draw at 2 q", first_draw_doubled, ()),
    "public_draws": ("own", "draws from a public seed", public_draws, ()),
}
