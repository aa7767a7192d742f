"""Noise made beside the computation: while a step's clipped sum is computed, another core draws its noise."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from dptrain.noise.protocol import Noise


class NoiseAhead:
    """Another noise, drawn by a thread from ``begin`` on. Holds one step's noise whole: 8 bytes a coordinate.

    Guarantee: that of the noise within; the same values in the same order. Noise that was begun and never asked for (a
    run that ends) is dropped, and its keystream is never used again.

    Args:
        noise: what makes the noise.
    """

    def __init__(self, noise: Noise) -> None:
        self.name = noise.name
        self._noise = noise
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="noise")
        self._begun: tuple[int, Future[Tensor]] | None = None

    def begin(self, step: int, count: int) -> None:
        """Starts drawing a step's noise; returns at once."""
        self._begun = (step, self._pool.submit(self._noise.draw, step, count))

    def draw(self, step: int, count: int) -> Tensor:
        """See ``Noise``; waits for what was begun."""
        if self._begun is None or self._begun[0] != step:
            return self._noise.draw(step, count)
        (_, future), self._begun = self._begun, None
        drawn = future.result()
        if len(drawn) != count:
            raise ValueError(f"{len(drawn)} coordinates were begun, {count} are asked for")
        return drawn

    def pieces(self, step: int, count: int) -> Iterator[Tensor]:
        """See ``Noise``."""
        return iter(self.draw(step, count).split(1 << 16))

    def distance(self, total_draws: int) -> float:
        """See ``Noise``."""
        return self._noise.distance(total_draws)
