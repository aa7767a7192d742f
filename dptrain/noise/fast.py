"""Noise in float32 arithmetic: quick, not safe from floating-point attacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from dptrain.keystream import Keystream, Purpose, Stream

PAIRS = 1 << 16
"""Pairs worked on at once: few enough to stay near, many enough that calls cost little."""


class FastNoise:
    """Gaussian noise by Box-Muller (1958) in float32, from the AES keystream on a CPU and torch's generator elsewhere.

    The radius comes from 63 random bits turned into a float32, which keeps its leading 24 wherever they stand: tails
    reach 9.3 standard deviations. (A radius from 24 bits, as torch's own float32 normals have it, ends at 5.8, and
    over millions of coordinates a missing tail costs more than a usual delta.) On CUDA normals are float64, for the
    same reason.

    Guarantee: none beyond the ideal formula. The gaps between float32 values can rule a neighbouring sum out (Mironov
    2012; Haney et al. 2022); torch's generator on CUDA can be predicted from enough of its output. A run that uses it
    says so in its statement.

    Args:
        keystream: source of bits on a CPU (``Purpose.FAST_NOISE``), of the seed elsewhere (``FAST_NOISE_SEED``).
        std: standard deviation, in the gradient's own unit.
        device: where noise is made and returned.
        compiled: whether numba's transform is used on a CPU; numba must be installed.
    """

    name = "fast"

    def __init__(
        self, keystream: Keystream, std: float, device: torch.device | str = "cpu", compiled: bool = False
    ) -> None:
        if not (math.isfinite(std) and std > 0.0):
            raise ValueError(f"std={std} is not a finite number above 0")
        self.scale = std
        self._keystream = keystream
        self._device = torch.device(device)
        self._generator: torch.Generator | None = None
        self._transform = _compiled() if compiled else box_muller
        self._bits = np.empty(3 * PAIRS, dtype=np.int32)
        self._work = torch.empty(5 * PAIRS)

    def draw(self, step: int, count: int) -> Tensor:
        """(count,) float32 on a CPU, float64 elsewhere, on the device. See ``Noise``."""
        pieces = [piece.clone() for piece in self.pieces(step, count)]
        return torch.cat(pieces) if pieces else torch.empty(0)

    def pieces(self, step: int, count: int) -> Iterator[Tensor]:
        """See ``Noise``."""
        if self._device.type == "cpu":
            return self._pieces(self._keystream.open(Purpose.FAST_NOISE, step), count)
        return iter([self._on_device(step, count)])

    def _pieces(self, stream: Stream, count: int) -> Iterator[Tensor]:
        for start in range(0, count, 2 * PAIRS):
            left = min(2 * PAIRS, count - start)
            half = (left + 1) // 2
            bits = stream.fill(self._bits[: 3 * half])
            yield self._transform(bits, self.scale, self._work)[:left]

    def _on_device(self, step: int, count: int) -> Tensor:
        seed = self._keystream.open(Purpose.FAST_NOISE_SEED, step).uint64(1)  # opened every step: refuses a replay
        if self._generator is None:
            # Seeded once: a generator that keeps few bits of a seed would, seeded anew every step, use one twice.
            self._generator = torch.Generator(self._device)
            self._generator.manual_seed(int(seed[0] >> np.uint64(1)))
        normal = torch.randn(count, generator=self._generator, device=self._device, dtype=torch.float64)
        return normal.mul_(self.scale)

    def distance(self, total_draws: int) -> float:
        """0.0: nothing is added to delta, because no bound is known; the statement says that noise was ``fast``."""
        return 0.0


def _compiled() -> Callable[[np.ndarray, float, Tensor], Tensor]:
    from dptrain.noise.compiled import normals

    def transform(words: np.ndarray, scale: float, work: Tensor) -> Tensor:
        size = 2 * (len(words) // 3)
        normals(words, scale, work.numpy()[:size])
        return work[:size]

    return transform


def box_muller(words: np.ndarray, scale: float, work: Tensor) -> Tensor:
    """2h normals of standard deviation ``scale`` from 3h words.

    With U in (0, 1] from the size of a radius, s = sin(pi T / 2) for T in [-1/2, 1/2): cos = 1 - 2 s^2 and
    sin = 2 s sqrt(1 - s^2) of the angle pi T cover half the circle, the sign of the radius the other half.

    Args:
        words: (3h,) int32: h high and h low halves of the radius, h angles.
        scale: standard deviation.
        work: (>= 5h,) float32, written.

    Returns:
        (2h,) float32: the beginning of ``work``.
    """
    half = len(words) // 3
    high, low, angles = torch.from_numpy(words).split(half)
    first, second, length, sine, constant = work[: 5 * half].split(half)
    second.copy_(high)  # its sign says which half of the circle
    torch.abs(second, out=length)
    first.copy_(low).abs_()
    constant.fill_(2.0**-64)  # tells on words of 0 only, which would have no logarithm
    constant.add_(first, alpha=2.0**-62)
    torch.add(constant, length, alpha=2.0**-31, out=length)
    length.log_().clamp_(max=0.0).mul_(-8.0 * scale * scale).sqrt_().copysign_(second)  # 2 scale r
    sine.copy_(angles).mul_(0.5 * math.pi * 2.0**-32).sin_()
    torch.addcmul(constant.fill_(1.0), sine, sine, value=-1.0, out=second)
    second.sqrt_().mul_(sine).mul_(length)
    torch.addcmul(constant.fill_(0.5), sine, sine, value=-1.0, out=first)
    first.mul_(length)
    return work[: 2 * half]
