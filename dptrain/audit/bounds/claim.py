"""Do these scores come from the mechanism that the statement claims? Tests of one given trade-off curve.

The curve is the run's own, from its accountant (``curve_of_event``). A small p-value contradicts the claim; a large one
shows no violation, which is not the same as none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import bdtrc, betainccinv

from dptrain.audit.bounds.bound import Coins, Floats, checked
from dptrain.audit.bounds.clopper_pearson import flagged
from dptrain.audit.bounds.curve import Curve
from dptrain.audit.bounds.f_dp import tail_at_most
from dptrain.audit.bounds.guesses import guess_counts, right_guesses

CLAIM_SHARES = (0.4, 0.8)
"""Shares of the canaries that ``p_value`` guesses about, fixed in advance. Chosen on simulated Gaussian scores with a
quarter of the noise, for 100 to 1,000 canaries and epsilon 1 to 8 (docs/results/bounds.md): more shares cost more in
the sharing of the error than they find, and a small share cannot contradict a large epsilon with few canaries."""


@dataclass(frozen=True)
class ClaimTest:
    """Guarantee: if the claim and ``assumption`` hold, P(p_value <= a) <= a for every a, over coins and noise."""

    p_value: float
    test: str
    assumption: str
    details: Mapping[str, Any] = field(default_factory=dict)


def p_value(scores: Floats, included: Coins, curve: Curve, shares: Sequence[float] = CLAIM_SHARES) -> ClaimTest:
    """The claim against the number of right guesses, valid however the scores depend on each other.

    The chance of so many right guesses is bounded by the argument of ``f_dp.py``, at each of a few numbers of guesses
    fixed in advance; the least is taken, times how many there are.

    Args:
        scores: (m,).
        included: (m,) fair, independent coins.
        curve: what is claimed.
        shares: of the canaries that are guessed about.

    Raises:
        ValueError: see ``checked``.
    """
    scores, included = checked(scores, included, 0.0, 0.5)
    counts = guess_counts(len(scores), shares)
    right = right_guesses(scores, included, counts)
    tails = [tail_at_most(len(scores), r, v, curve) for r, v in zip(counts, right, strict=True)]
    best = int(np.argmin(tails))
    return ClaimTest(
        min(1.0, len(counts) * tails[best]),
        "right guesses in one run",
        "holds whatever the scores and however they depend on each other; the coins must be fair and independent",
        {"guesses": counts[best], "right": right[best], "tried": list(counts), "curve": curve.name},
    )


def p_value_independent(scores: Floats, included: Coins, curve: Curve) -> ClaimTest:
    """The claim against the number flagged above a few ranks of the other side; for independent canaries.

    The rule "above the (k+1)-th highest score of those left out" has a rate of false alarms A that is at most a
    Beta(k+1, n-k) variable, and finds at most a share 1 - f(A): the number found is binomial at most, and its tail is
    averaged over A exactly. The same with the sides exchanged; the least of all p-values, times how many there are.

    Args:
        scores: (m,).
        included: (m,).
        curve: what is claimed.

    Raises:
        ValueError: see ``checked``.
    """
    scores, included = checked(scores, included, 0.0, 0.5)
    inside, outside = scores[included], scores[~included]
    values, facts = [], []
    for direction, loud, quiet in (("members", inside, outside), ("left out", -outside, -inside)):
        for alarms, found in flagged(loud, quiet):
            values.append(_found_tail(found, len(loud), alarms, len(quiet), curve))
            facts.append({"finds": direction, "found": found, "of": len(loud), "false_alarms": alarms})
    assumption = "holds where scores of different canaries are independent draws, alike within each side"
    if not values:
        return ClaimTest(1.0, "found above a rank", assumption, {"curve": curve.name, "note": "one side is empty"})
    best = int(np.argmin(values))
    details = facts[best] | {"tried": len(values), "curve": curve.name}
    return ClaimTest(min(1.0, len(values) * values[best]), "found above a rank", assumption, details)


ABOVE = np.concatenate([np.arange(255, 0, -1) / 256, 0.5 ** np.arange(9, 61), [0.0]])
"""P(A > edge) at the upper edges of the cells that the law of A is cut into: even ones, and ever smaller ones at the
end. Each cell counts as its largest A, so the tail is rounded up."""


def _found_tail(found: int, loud: int, alarms: int, quiet: int, curve: Curve) -> float:
    if found == 0:
        return 1.0
    edges = np.asarray(betainccinv(alarms + 1, quiet - alarms, ABOVE))
    weights = -np.diff(ABOVE, prepend=1.0)
    return float(weights @ bdtrc(found - 1, loud, curve.most_found(edges)))
