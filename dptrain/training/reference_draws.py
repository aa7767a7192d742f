"""Draws of a non-private reference: uniform subsets of one size, repeatable from a seed.

A run takes every unit with some probability, so that the size of its draws varies: that is what its promise is counted
by. A reference of a non-private run promises nothing and is never released. Its draws have the expected size of the
run's, always: of equal size they can be stacked without filling up. Which rows come together is as random as in the
run; the number of them is not, whose deviation would be at most the square root of the expected size.
"""

from __future__ import annotations

from collections.abc import Iterator

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


def reference_draws(members: Tensor, size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Each step's draw: every subset of that size is as likely as another, whatever was drawn before.

    Args:
        members: (n,) int64 indices of what may be drawn.
        size: rows of a draw, at most n.
        steps: number of draws.
        seed: of this reference.

    Yields:
        (size,) int64, a subset of ``members``.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    values = members.numpy()
    for _ in range(steps):
        yield torch.from_numpy(values[generator.choice(len(values), size, replace=False, shuffle=False)])
