"""An epsilon lower bound from one run that holds whatever depends on what (after Steinke, Nasr & Jagielski 2023).

Let W be how many of r guesses about m fair coins are right, for a mechanism that is (epsilon, delta)-DP in each coin,
and B ~ Binomial(r, e^epsilon / (1 + e^epsilon)). Then (``tail``)

    P(W >= v) <= P(B >= v) (1 + m delta max over 1 <= j <= v of P(B < j) / (j P(B = j))).

Proof: let p_u = P(W = u). For a random canary k, the outcomes "k is guessed right and W = u" have probability
u p_u / m; with that one coin turned over they are "k is guessed wrong and W = u - 1", (r - u + 1) p_(u-1) / m. Privacy,
averaged over k and over all coins, gives for every set of u, and so for all weights in [0, 1] on them,

    sum over it of u p_u - e^epsilon (r - u + 1) p_(u-1) <= m delta.

Weights proportional to n_u / (u P(B = u)) with n_u = P(B >= max(u, v)) - P(B >= v) P(B >= u) turn the left side into
P(W >= v) - P(B >= v), term by term. The largest of them is the factor of m delta. For u >= v it is P(B < v) times
P(B >= u) / (u P(B = u)), which falls with u, because the binomial is log-concave; for u <= v it is P(B >= v) times
a_u / u with a_u = P(B < u) / P(B = u). The maximum over j is at j = v: from P(B = u) = P(B = u - 1) (r - u + 1)
e^epsilon / u follows a_u / u = (1 + a_(u-1)) / ((r - u + 1) e^epsilon), and a grows with u. So ``tail`` computes

    P(B >= v) (1 + m delta P(B < v) / (v P(B = v))).

The worst mechanism reaches this, unless it is 1: for few coins the linear programme over all mechanisms has this very
value (test_audit_bounds_programme.py). It grows with epsilon: so do P(B >= v) and P(B >= v) / P(B = v), and P(B < v)
loses no more than P(B >= v) gains while the bound is below 1.

The paper's Theorem 5.2 (arXiv 2305.08846) has 2 m delta max over i of P(v > B >= v - i) / i for the delta part
(``published_tail``, for comparison only). It is mostly larger, but not everywhere: as we read it, it is below what a
mechanism reaches in places. m = r = 2, v = 1, epsilon 1.5, delta 0.05 allow 0.9775, and it says 0.9734.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.special import bdtrc, expit
from scipy.stats import binom

from dptrain.audit.bounds.bound import LARGEST_EPSILON, Bound, Coins, Floats, checked
from dptrain.audit.bounds.guesses import SHARES, strongest

ASSUMPTION = "holds whatever the scores and however they depend on each other; the coins must be fair and independent"


def one_run(
    scores: Floats, included: Coins, delta: float, confidence: float, shares: Sequence[float] = SHARES
) -> Bound:
    """The largest epsilon below which so many right guesses would be too unlikely, over a grid of numbers of guesses.

    Guarantee: for a mechanism that is (e, delta)-DP in each canary, the bound is above e with probability at most
    1 - confidence, whatever the scores and their dependence; the error is shared equally among the numbers of guesses.

    Args:
        scores: (m,) higher is more like included.
        included: (m,) the coins.
        delta: in [0, 1).
        confidence: in (0, 1).
        shares: of the canaries that are guessed about, fixed in advance.

    Raises:
        ValueError: see ``checked`` and ``guess_counts``.
    """
    scores, included = checked(scores, included, delta, confidence)

    def evidence(canaries: int, guesses: int, right: int, error: float) -> float:
        return one_run_epsilon(canaries, guesses, right, delta, error)

    epsilon, details = strongest(scores, included, confidence, shares, evidence)
    return Bound("one_run", epsilon, delta, confidence, ASSUMPTION, details)


@lru_cache(maxsize=65536)
def one_run_epsilon(canaries: int, guesses: int, right: int, delta: float, error: float) -> float:
    """The largest epsilon at which ``tail`` is at most ``error``, rounded down by at most 1e-6; 0 where there is none.

    Kept in memory: simulations ask for the same counts over and over.
    """
    if tail(canaries, guesses, right, 0.0, delta) > error:
        return 0.0
    low, high = 0.0, LARGEST_EPSILON
    if tail(canaries, guesses, right, high, delta) <= error:
        return high
    while high - low > 1e-6:
        middle = (low + high) / 2.0
        if tail(canaries, guesses, right, middle, delta) <= error:
            low = middle
        else:
            high = middle
    return low


def tail(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """P(at least ``right`` of ``guesses`` are right), at most, for any (epsilon, delta)-DP mechanism.

    Guarantee: an upper bound whatever the mechanism, and the least one; never decreasing in epsilon or delta. The ratio
    of P(B >= v) to P(B = v) is summed from its terms, so that no underflow hides the delta part.
    """
    _check_counts(canaries, guesses, right)
    if right == 0:
        return 1.0
    pure = float(bdtrc(right - 1, guesses, expit(epsilon)))
    if delta == 0.0 or pure == 1.0:
        return min(1.0, pure)
    after = np.arange(right, guesses)
    with np.errstate(over="ignore"):  # an infinite ratio means that the bound says nothing, and it is cut at 1
        ratio = 1.0 + float(np.cumprod((guesses - after) / (after + 1.0) * math.exp(epsilon)).sum())
    return min(1.0, pure + (1.0 - pure) * canaries * delta / right * ratio)


def published_tail(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Theorem 5.2 as it is printed, for comparison: the maximum over i of the delta part, times 2 m delta."""
    _check_counts(canaries, guesses, right)
    if right == 0:
        return 1.0
    law = binom(guesses, expit(epsilon))
    steps = np.arange(1, right + 1)
    pure = float(law.sf(right - 1))
    part = float(np.max((law.sf(right - steps - 1) - pure) / steps))
    return min(1.0, pure + 2.0 * canaries * delta * max(0.0, part))


def _check_counts(canaries: int, guesses: int, right: int) -> None:
    if not 0 <= right <= guesses <= canaries or guesses < 1:
        raise ValueError(f"{right} right of {guesses} guesses about {canaries} canaries cannot be")
