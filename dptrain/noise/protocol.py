"""What the noise of a step is, whichever generator stands behind it."""

from __future__ import annotations

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
            (count,) float64: whole grid steps under ``secure``, the gradient's own unit under ``fast``.
        """
        ...

    def distance(self, total_draws: int) -> float:
        """Upper bound on the total variation distance of that many coordinates from the ideal law."""
        ...
