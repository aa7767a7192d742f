"""Mistakes in draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import dptrain.data.batches as batches_module
from dptrain.data.batches import PhysicalBatch
from dptrain.data.sampler import PoissonSampler
from dptrain.gradients.draw_sum import DrawSum
from dptrain.gradients.protocol import UnitStats
from dptrain.keystream import Purpose

from .shared import Mutant, Patch


def _uniform(sampler: Any, step: int) -> np.ndarray:
    return sampler._keystream.open(Purpose.DRAW, step).uint64(sampler.num_units) * 2.0**-64


def cyclic_groups(patch: Patch) -> None:
    """Four groups of units take turns, each drawn from at 4 q: cyclic sampling at the price of q in every step."""

    def draw(self: PoissonSampler, step: int) -> Tensor:
        turn = np.arange(self.num_units) % 4 == step % 4
        return torch.from_numpy(np.flatnonzero(turn & (_uniform(self, step) < 4.0 * self.sampling_rate)))

    patch(PoissonSampler, "draw", draw)


def hard_units_favoured(patch: Patch) -> None:
    """Units whose last gradient was longer than the median are drawn with 1.3 q, the others with 0.7 q."""
    latest: list[Tensor] = []
    norms: dict[int, float] = {}
    gather, add, draw = batches_module._gather, DrawSum.add, PoissonSampler.draw

    def gathered(units: Tensor, *rest: Any) -> PhysicalBatch:
        latest[:] = [units]
        return gather(units, *rest)

    def added(self: DrawSum, engine: Any, batch: PhysicalBatch, first: int = 0, last: int | None = None) -> UnitStats:
        stats = add(self, engine, batch, first, last)
        if first == 0 and latest:
            norms.update(zip(latest[0].tolist(), stats.norms.tolist(), strict=False))
            latest.clear()
        return stats

    def drawn(self: Any, step: int) -> Tensor:
        if step == 0:
            norms.clear()
        if not norms:
            return draw(self, step)
        middle = float(np.median(list(norms.values())))
        rate = np.ones(self.num_units)
        known = [unit for unit in norms if unit < self.num_units]
        rate[known] = [1.3 if norms[unit] > middle else 0.7 for unit in known]
        return torch.from_numpy(np.flatnonzero(_uniform(self, step) < np.minimum(rate * self.sampling_rate, 1.0)))

    patch(batches_module, "_gather", gathered)
    patch(DrawSum, "add", added)
    patch(PoissonSampler, "draw", drawn)


def epoch_replayed(patch: Patch) -> None:
    """The draws of the first epoch are kept, and are those of every epoch."""
    original = PoissonSampler.draw

    def draw(self: Any, step: int) -> Tensor:
        held: list[Tensor] = self.__dict__.setdefault("epoch", [])
        if len(held) < max(2, round(1.0 / self.sampling_rate)):
            held.append(original(self, step))
            return held[-1]
        return held[step % len(held)]

    patch(PoissonSampler, "draw", draw)


MUTANTS: dict[str, Mutant] = {
    "cyclic_groups": ("Choquette-Choo et al. 2023", "four groups take turns at 4 q", cyclic_groups, ()),
    "hard_units_favoured": ("own", "long gradients are drawn at 1.3 q", hard_units_favoured, ()),
    "epoch_replayed": ("own", "draws of the first epoch are those of all", epoch_replayed, ()),
}
