"""Poisson sampling of units: the draw of one step."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from dptrain.keystream import Keystream, Purpose

_CHUNK = 1 << 20
"""Units compared at once; bounds the memory of a draw over many units."""


class PoissonSampler:
    """Includes every unit in a draw independently with one public probability.

    Guarantee: a unit is included with probability q' = floor(q 2^64) / 2^64, independently of every other unit
    and of every other step (up to the keystream being pseudo-random). q' <= q and q - q' < 2^-64, so the
    accountant, which is given q, never under-counts. A draw is never replayed: the keystream refuses.

    Args:
        num_units: number of units N, at least 0.
        sampling_rate: q, in (0, 1]; at 1 every draw holds every unit.
        keystream: source of the random words (``Purpose.DRAW``).
    """

    name = "poisson"

    def __init__(self, num_units: int, sampling_rate: float, keystream: Keystream) -> None:
        if num_units < 0:
            raise ValueError(f"num_units={num_units} is below 0")
        if not (math.isfinite(sampling_rate) and 0.0 < sampling_rate <= 1.0):
            raise ValueError(f"sampling_rate={sampling_rate} is not in (0, 1]")
        self.num_units = num_units
        self.sampling_rate = sampling_rate
        # Exact: multiplying by a power of two only moves the exponent, and int() rounds towards zero.
        self._threshold = int(sampling_rate * 2.0**64)
        self._keystream = keystream

    def draw(self, step: int) -> Tensor:
        """The units of one step, ascending and distinct; possibly none.

        Args:
            step: the step's number, larger than that of any draw before.

        Returns:
            (K,) int64 unit indices.

        Raises:
            RuntimeError: the step was drawn before.
        """
        stream = self._keystream.open(Purpose.DRAW, step)
        if self._threshold >= 1 << 64:
            return torch.arange(self.num_units)
        threshold = np.uint64(self._threshold)
        parts = [np.empty(0, dtype=np.int64)]
        for start in range(0, self.num_units, _CHUNK):
            words = stream.uint64(min(_CHUNK, self.num_units - start))
            parts.append(np.flatnonzero(words < threshold) + start)
        return torch.from_numpy(np.concatenate(parts))
