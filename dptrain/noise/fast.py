"""Noise from torch's own generator: quick on any device, neither cryptographic nor safe from floating-point attacks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dptrain.keystream import Keystream, Purpose


class FastNoise:
    """Float64 normals of torch's generator on one device (float32 ones end near 5.8 standard deviations).

    The generator is seeded once, from the keystream, and runs on from step to step: a CPU generator keeps only 32
    bits of a seed, so that seeding it anew every step would, over tens of thousands of steps, use a seed twice.

    Guarantee: none beyond the ideal formula. The generator's output can be predicted from enough of itself, a CPU
    seed can be searched, and the gaps between values can rule a neighbouring sum out (Haney et al. 2022). A run that
    uses it says so in its statement.

    Args:
        keystream: source of the seed (``Purpose.FAST_NOISE_SEED``).
        std: standard deviation, in the gradient's own unit.
        device: where noise is made and returned.
    """

    name = "fast"

    def __init__(self, keystream: Keystream, std: float, device: torch.device | str = "cpu") -> None:
        if not (math.isfinite(std) and std > 0.0):
            raise ValueError(f"std={std} is not a finite number above 0")
        self.scale = std
        self._keystream = keystream
        self._device = torch.device(device)
        self._generator: torch.Generator | None = None

    def draw(self, step: int, count: int) -> Tensor:
        """(count,) float64, on the device. See ``Noise``."""
        seed = self._keystream.open(Purpose.FAST_NOISE_SEED, step).uint64(1)  # opened every step: refuses a replay
        if self._generator is None:
            self._generator = torch.Generator(self._device)
            self._generator.manual_seed(int(seed[0]))
        normal = torch.randn(count, generator=self._generator, device=self._device, dtype=torch.float64)
        return normal.mul_(self.scale)

    def distance(self, total_draws: int) -> float:
        """0.0: nothing is added to delta, because no bound is known; the statement says that noise was ``fast``."""
        return 0.0
