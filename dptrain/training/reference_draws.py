"""Draws of a non-private reference: uniform subsets of one size, repeatable from a seed.

A run takes every unit with some probability, so that the size of its draws varies: that is what its promise is counted
by. A reference of a non-private run promises nothing and is never released. Its draws have the expected size of the
run's, always: of equal size they can be stacked without filling up. Which rows come together is as random as in the
run; the number of them is not, whose deviation would be at most the square root of the expected size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def draw_size(expected: float, fewest: int) -> int:
    """Rows of every draw: the run's expected batch, or all where a half has fewer; at least 1.

    Args:
        expected: batch size of the run.
        fewest: members of the smallest half.
    """
    return max(1, min(round(expected), fewest))


@dataclass(frozen=True)
class ReferenceDraws:
    """Each step's draw: every subset of that size is as likely as another, whatever was drawn before.

    Iteration gives (size,) int64 tensors, each a subset of ``members``, the same ones every time.
    """

    members: Tensor
    """(n,) int64 indices of what may be drawn."""
    size: int
    """Rows of a draw, at most n."""
    steps: int
    """Number of draws."""
    seed: int
    """Of this reference."""

    def generator(self) -> np.random.Generator:
        """What the draws are made from."""
        return np.random.Generator(np.random.Philox(self.seed))

    def __iter__(self) -> Iterator[Tensor]:
        generator, values = self.generator(), self.members.numpy()
        for _ in range(self.steps):
            yield torch.from_numpy(values[generator.choice(len(values), self.size, replace=False, shuffle=False)])
