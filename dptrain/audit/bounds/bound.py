"""What every bound takes and returns.

Canaries are units of which each was put into the training data, or left out, by the toss of a fair coin of its own. A
score says how much a canary looks included, higher for more. A bound is a number of which one can say: "if the
assumption holds, epsilon at this delta is at least that, with this confidence". It is never evidence that epsilon is
no larger: the words are "no violation larger than x found".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Coins = NDArray[np.bool_]

LARGEST_EPSILON = 60.0
"""No bound goes beyond it: odds of e^60 cannot be told from certainty with any number of canaries."""


@dataclass(frozen=True)
class Bound:
    """A lower bound on epsilon.

    Guarantee: under ``assumption``, ``epsilon`` is above the mechanism's epsilon at ``delta`` with probability at most
    1 - ``confidence``, over coins and noise.
    """

    name: str
    epsilon: float
    delta: float
    confidence: float
    assumption: str
    """One plain sentence for the user."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Counts and thresholds that the bound was read from; plain data."""


def checked(scores: Floats, included: Coins, delta: float, confidence: float) -> tuple[Floats, Coins]:
    """Scores and coins in the types that bounds compute with.

    Args:
        scores: (m,) finite, m at least 1.
        included: (m,) booleans, or numbers that are all 0 or 1.
        delta: in [0, 1).
        confidence: in (0, 1).

    Raises:
        ValueError: shapes, a score that is not finite, coins that are not coins, or a number out of range.
    """
    values, coins = np.asarray(scores, dtype=np.float64), np.asarray(included)
    if values.ndim != 1 or values.shape != coins.shape or values.size == 0:
        raise ValueError(f"scores {values.shape} and included {coins.shape}: both must be (m,), m at least 1")
    if not np.isfinite(values).all():
        raise ValueError("a score is not finite")
    if coins.dtype != np.bool_:
        if not np.isin(coins, (0, 1)).all():
            raise ValueError("included must be true or false")
        coins = coins.astype(np.bool_)
    if not (math.isfinite(delta) and 0.0 <= delta < 1.0):
        raise ValueError(f"delta={delta} is not in [0, 1)")
    if not (math.isfinite(confidence) and 0.0 < confidence < 1.0):
        raise ValueError(f"confidence={confidence} is not in (0, 1)")
    return values, coins
