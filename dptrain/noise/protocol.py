"""What the noise of a step is, whichever generator stands behind it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor


class Noise(Protocol):
    """Independent Gaussian noise, one fresh vector a step.

    Guarantee: no two calls return noise made of the same random bits; a step is drawn at most once.
    """

    name: str

    def draw(self, step: int, count: int) -> Tensor:
        """The noise of one step.

        Args:
            step: the step's number, larger than that of any draw before.
            count: number of coordinates.

        Returns:
            (count,) float64 whole grid steps under ``secure``; float32 or float64 in the gradient's own unit under
            ``fast``.
        """
        ...

    def pieces(self, step: int, count: int) -> Iterator[Tensor]:
        """The same noise in consecutive pieces that fit a cache; a piece is valid until the next is asked for."""
        ...

    def distance(self, total_draws: int) -> float:
        """Upper bound on the total variation distance of that many coordinates from the ideal law."""
        ...
