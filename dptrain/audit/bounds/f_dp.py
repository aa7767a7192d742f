"""An epsilon lower bound from one run for mechanisms of a stated family of trade-off curves, whatever depends on what.

Mahloujifar, Melis & Chaudhuri 2024 (arXiv 2410.22235), for guesses about membership, in the form that the symmetry
argument of ``one_run.py`` gives: let p_u be the probability that exactly u of r guesses about m coins are right, and

    R_w = sum over u >= w of u p_u / m         (the coin of a random canary is guessed right, and W >= w)
    H_w = sum over u >= w - 1 of (r - u) p_u / m   (the same outcomes, with that one coin turned over)

Then R_w <= 1 - f(H_w) for every w. If P(W >= v) were as large as tau, these inequalities force mass upon v - 1,
v - 2, ...; where more than 1 is forced, tau is impossible. The largest possible tau bounds the tail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from scipy.special import ndtr, ndtri

from dptrain.audit.bounds.bound import Bound, Coins, Floats, checked
from dptrain.audit.bounds.curve import Curve, gaussian_epsilon, laplace_curve
from dptrain.audit.bounds.guesses import SHARES, strongest

LeastAlarms = Callable[[float], float]
"""H for a given R: the least rate of false alarms of a test that finds a share R of members."""


@dataclass(frozen=True)
class Family:
    """Curves ordered by one number, stronger privacy first."""

    name: str
    assumption: str
    alarms: Callable[[float], LeastAlarms]
    """From the number to the curve's ``least_alarms``."""
    epsilon: Callable[[float, float], float]
    """(number, delta) -> epsilon."""
    largest: float


def _gaussian_alarms(mu: float) -> LeastAlarms:
    return lambda found: float(ndtr(ndtri(found) - mu)) if found > 0.0 else 0.0


GAUSSIAN = Family(
    "Gaussian",
    "coins fair and independent, scores may depend on each other; the mechanism's trade-off curve is that of some "
    "Gaussian mechanism, or lies above it",
    _gaussian_alarms,
    gaussian_epsilon,
    20.0,
)
LAPLACE = Family(
    "Laplace",
    "coins fair and independent, scores may depend on each other; the mechanism's trade-off curve is that of some "
    "Laplace mechanism, or lies above it",
    lambda strength: laplace_curve(strength).least_alarms,
    lambda strength, delta: max(0.0, strength + 2.0 * float(np.log1p(-delta))),
    60.0,
)


def f_dp(
    scores: Floats,
    included: Coins,
    delta: float,
    confidence: float,
    family: Family = GAUSSIAN,
    shares: Sequence[float] = SHARES,
) -> Bound:
    """Epsilon at ``delta`` of the strongest curve of the family that so many right guesses do not contradict.

    Guarantee: where the mechanism's curve is at or above the one of the family with epsilon e at ``delta``, the bound
    is above e with probability at most 1 - confidence, however the scores depend on each other.

    Args:
        scores: (m,).
        included: (m,).
        delta: in (0, 1).
        confidence: in (0, 1).
        family: of curves; Gaussian unless told otherwise.
        shares: of the canaries that are guessed about, fixed in advance.

    Raises:
        ValueError: see ``checked``; delta is 0.
    """
    scores, included = checked(scores, included, delta, confidence)
    if delta == 0.0:
        raise ValueError("delta=0: a Gaussian mechanism has no epsilon there")
    number, details = strongest(scores, included, confidence, shares, partial(_strength, family=family))
    details |= {"family": family.name, "strength": number}
    return Bound("f_dp", family.epsilon(number, delta), delta, confidence, family.assumption, details)


@lru_cache(maxsize=65536)
def _strength(canaries: int, guesses: int, right: int, error: float, family: Family) -> float:
    """The largest number of the family whose curve makes this count less likely than ``error``, less 1e-4 at most."""

    def contradicted(number: float) -> bool:
        return not possible(canaries, guesses, right, error, family.alarms(number))

    low, high = 1e-3, 1.0
    if not contradicted(low):
        return 0.0
    while high < family.largest and contradicted(high):
        low, high = high, 2.0 * high
    while high - low > 1e-4:
        middle = (low + high) / 2.0
        low, high = (middle, high) if contradicted(middle) else (low, middle)
    return low


def possible(canaries: int, guesses: int, right: int, chance: float, alarms: LeastAlarms) -> bool:
    """Whether some mechanism with this curve has P(at least ``right`` guesses are right) >= ``chance``, as far as the
    inequalities above can tell.

    Least mass is forced below when all of ``chance`` sits on exactly ``right``; the rest follows downwards, each level
    getting no more than its inequality demands.
    """
    if right == 0:
        return True
    hits, misses = chance * right / canaries, chance * (guesses - right) / canaries
    for level in range(right - 1, -1, -1):
        needed = alarms(min(hits, 1.0))
        if needed > misses:
            hits += level / (guesses - level) * (needed - misses)
            misses = needed
        if hits + misses > guesses / canaries * (1.0 + 1e-12):
            return False
    return True


@lru_cache(maxsize=16384)
def tail_at_most(canaries: int, guesses: int, right: int, curve: Curve) -> float:
    """P(at least ``right`` of ``guesses`` are right), at most, for any mechanism with this curve; rounded up by 1e-4 of
    itself, and not below 1e-12."""
    if possible(canaries, guesses, right, 1.0, curve.least_alarms):
        return 1.0
    low, high = 1e-12, 1.0
    if not possible(canaries, guesses, right, low, curve.least_alarms):
        return low
    while high > low * 1.0001:
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if possible(canaries, guesses, right, middle, curve.least_alarms) else (low, middle)
    return high
