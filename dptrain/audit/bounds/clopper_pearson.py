"""The classical bound: true positives at least so often, false positives at most so often (Jagielski et al. 2020).

Flagging rules are fixed without looking at the side that is then counted: "above the (k+1)-th highest score of those
left out" for finding members, "below the (k+1)-th lowest score of those included" for finding those left out. The first
has a true false-positive rate of at most a Beta(k+1, n-k) variable, and given the rule the other side's count is
binomial; ties only help. Kairouz, Oh & Viswanath 2015, Theorem 2.1: found <= e^epsilon alarms + delta, both ways.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from dptrain.audit.bounds.bound import LARGEST_EPSILON, Bound, Coins, Floats, checked
from dptrain.audit.intervals import proportion_high, proportion_low

ASSUMPTION = "holds where scores of different canaries are independent draws, alike within each side"
ALARM_SHARES = (0.0, 0.02, 0.1, 0.3)
"""Shares of the quiet side above which the rules flag; fixed in advance."""


def clopper_pearson(scores: Floats, included: Coins, delta: float, confidence: float) -> Bound:
    """Exact binomial bounds on both rates, at four rules a direction; the error is shared among rules and rates.

    Guarantee: where canaries are independent and alike within each side, the bound is above the mechanism's epsilon at
    ``delta`` with probability at most 1 - confidence. Scores of one training run are not independent in general.

    Args:
        scores: (m,).
        included: (m,).
        delta: in [0, 1).
        confidence: in (0, 1).

    Raises:
        ValueError: see ``checked``.
    """
    scores, included = checked(scores, included, delta, confidence)
    error = (1.0 - confidence) / (2 * len(ALARM_SHARES))
    best, details = 0.0, {"included": int(included.sum()), "left_out": int((~included).sum())}
    for direction, loud, quiet in (
        ("members", scores[included], scores[~included]),
        ("left out", -scores[~included], -scores[included]),
    ):
        for alarms, found in flagged(loud, quiet):
            epsilon = _rates_epsilon(found, len(loud), alarms, len(quiet), delta, error)
            if epsilon > best:
                best = epsilon
                details |= {"finds": direction, "found": found, "false_alarms": alarms}
    return Bound("clopper_pearson", best, delta, confidence, ASSUMPTION, details)


def flagged(loud: Floats, quiet: Floats) -> list[tuple[int, int]]:
    """(k, how many of the loud side lie above the (k+1)-th highest of the quiet one), k from ``ALARM_SHARES``."""
    if len(quiet) == 0 or len(loud) == 0:
        return []
    descending = np.sort(quiet)[::-1]
    counts = sorted({min(math.floor(share * len(quiet)), len(quiet) - 1) for share in ALARM_SHARES})
    return [(k, int((loud > descending[k]).sum())) for k in counts]


@lru_cache(maxsize=65536)
def _rates_epsilon(found: int, loud: int, alarms: int, quiet: int, delta: float, error: float) -> float:
    share = proportion_low(found, loud, error / 2.0)
    if share <= delta:
        return 0.0
    ratio = (share - delta) / proportion_high(alarms, quiet, error / 2.0)
    return min(LARGEST_EPSILON, max(0.0, math.log(ratio)))
