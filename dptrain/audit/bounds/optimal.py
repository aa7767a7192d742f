"""The sharpest bound: likelihood-ratio scores of the run's own mechanism, against the same mechanism with other noise.

Canary i's score s_i is a function of what was released in its own direction, and directions do not share noise or
coins. If the noise had size sigma', the posterior odds of coin i, given the score, would be e^l(s_i) with
``l(s) = law.log_odds(s, sigma')``, and coins would be independent given all scores. From here on nothing but that
coin law is used:

1. Given also how many coins are "in", K, a constant added to every l changes nothing (exact): the coins' law is
   proportional to exp(sum of l over those in), whatever the share of coins that were tossed "in".
2. The statistic T is the sum over those in of l, cut at ``CAP``: the score test of logistic regression with a known
   slope and a free intercept (Cox 1958, The regression analysis of binary sequences). For any weights the level is
   right; these weights decide power only.
3. P(T >= seen | K) is the one approximation in the test: the double saddlepoint (Skovgaard 1987, Saddlepoint expansions
   for conditional distributions; Davison 1988, Approximate conditional inference in generalized linear models), with a
   relative error of order 1/m.
4. A size of noise is rejected where that chance is at most the error, and the smallest rejected size, found by halving,
   gives the bound. For q = 1 the chance falls as noise grows (l is proportional to the score, and T its sufficient
   statistic but for the cut), so the bound misses only where the true size is itself rejected, and no error is shared
   among sizes. For q < 1 that is found, not proved.

Exact: 1, 2, and l for q = 1 or one step. Approximate: 3, the grid of sizes (half a percent), l for q < 1 and several
steps (composed on a grid, to about 0.001; beyond the scores that are composed it is continued as a line), 4 for q < 1.
How often the bound is above the truth is simulated in docs/results/bounds.md.

It uses coins alone, given the scores: where scores do not go with coins every coin is a fair one given the scores, for
which T is stochastically no larger than under any sigma', so nothing is shown, however scores are spread.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import expit, ndtr

from dptrain.audit.bounds.bound import Bound, Coins, Floats, checked
from dptrain.audit.bounds.score_law import SampledGaussian

ASSUMPTION = (
    "holds where scores are the log-likelihood ratios of the run's own mechanism (sampled Gaussian noise) with noise "
    "of this or another size, each canary on a direction of its own"
)
RATIO = 1.005
"""Noise sizes tried are the run's own times powers of this,"""
LEAST, MOST = -420, 420
"""from 1/8 to 8 times."""
SMALLEST = 50
"""Fewest canaries: below, the approximation of the tail is not trusted, and the bound is 0;"""
LEAST_DOUBT = 5.0
"""and so where the null expects less than this of the sum of p (1 - p): nearly every coin is then known."""
CAP = 12.0
"""Weights do not grow beyond these log odds, where a guess is certain anyway."""
MIDDLE = 0.2
"""Standard deviations above the mean from which on the saddlepoint is used;"""
NEWTON = 40
"""steps to find it, at most."""


def optimal(scores: Floats, included: Coins, delta: float, confidence: float, law: SampledGaussian) -> Bound:
    """Epsilon at the smallest noise that the coins, given the scores, reject.

    Guarantee: where the released numbers are those of ``law`` with noise of some size, and scores are ``law.scores`` of
    them, the bound is above epsilon at that noise with probability at most 1 - confidence, up to what the module's
    docstring calls approximate (simulated in docs/results/bounds.md). Where scores are independent of the coins, it is
    above 0 with at most that probability, whatever the scores.

    Args:
        scores: (m,) log-likelihood ratios under ``law``.
        included: (m,) fair, independent coins.
        delta: in (0, 1).
        confidence: in (0, 1).
        law: the run's own mechanism.

    Raises:
        ValueError: see ``checked``; delta is 0.
    """
    scores, included = checked(scores, included, delta, confidence)
    if delta == 0.0:
        raise ValueError("delta=0: a Gaussian mechanism has no epsilon there")
    error = 1.0 - confidence

    def rejected(power: int) -> bool:
        return coins_p_value(law.log_odds(scores, law.noise_multiplier * RATIO**power), included) <= error

    if not rejected(MOST):
        return Bound("optimal", 0.0, delta, confidence, ASSUMPTION, {"canaries": len(scores)})
    low, high = LEAST - 1, MOST  # high is rejected; what is below LEAST is not tried
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if rejected(middle) else (middle, high)
    noise = law.noise_multiplier * RATIO**high
    details = {"noise_multiplier": noise, "own_noise_multiplier": law.noise_multiplier, "canaries": len(scores)}
    return Bound("optimal", law.epsilon(delta, noise), delta, confidence, ASSUMPTION, details)


def coins_p_value(log_odds: Floats, included: Coins) -> float:
    """Chance, given how many coins are "in", that those with high odds are "in" as often as seen or more.

    The double saddlepoint for P(T >= seen | number in); below and near the middle, where that is 0 / 0, the normal tail
    with the conditional law's first Edgeworth terms. Meant for scores that are nearly all different: with a few values
    only, the chance of exactly what was seen is counted in part.

    Args:
        log_odds: (m,) of "in" given the score, up to a constant.
        included: (m,).

    Returns:
        A p-value; 1 where too little is left to chance (``SMALLEST``, ``LEAST_DOUBT``).
    """
    inside = int(included.sum())
    if len(log_odds) < SMALLEST or inside in (0, len(log_odds)):
        return 1.0
    odds = log_odds + _intercept(log_odds, inside)
    chance = expit(odds)
    doubt = chance * (1.0 - chance)
    total = float(doubt.sum())
    if total < LEAST_DOUBT:
        return 1.0
    weights = np.clip(odds, -CAP, CAP)
    weights = weights - float(doubt @ weights) / total
    variance = float(doubt @ weights**2)
    if variance <= 1e-12 * total:
        return 1.0
    weights = weights / math.sqrt(variance)
    z = float(weights @ (included - chance))
    if z < MIDDLE:
        thirds = doubt * (1.0 - 2.0 * chance)
        slope = float(thirds @ weights**3) * (z * z - 1.0) / 6.0 - float(thirds @ weights) / (2.0 * total)
        return min(1.0, max(0.0, float(ndtr(-z)) + slope * math.exp(-z * z / 2.0) / math.sqrt(2.0 * math.pi)))
    return min(1.0, max(0.0, _saddlepoint_tail(odds, weights, included, total)))


def _saddlepoint_tail(odds: Floats, weights: Floats, included: Coins, total: float) -> float:
    """P(weights of those in add up to as much or more | number in), ``total`` the variance of that number.

    Newton's method for the tilt (shift, turn) under which both sums are expected to be what they are. Where the sum is
    near its largest the tilt runs off: Markov's inequality at the last tilt is then used, which errs on the safe side.
    """
    tilt, at = np.zeros(2), odds
    for _ in range(NEWTON):
        chance = expit(at)
        doubt, left = chance * (1.0 - chance), included - chance
        a, b, c = float(doubt.sum()), float(doubt @ weights), float(doubt @ weights**2)
        area = a * c - b * b
        if not area > 1e-9 * total:
            break
        first, second = float(left.sum()), float(left @ weights)
        step = np.array([c * first - b * second, a * second - b * first]) / area
        moved = step[0] + step[1] * weights
        if float(np.abs(moved).max()) < 1e-7:
            root = math.sqrt(2.0 * _gain(odds, at, included))
            turn = float(tilt[1]) * math.sqrt(area / total)
            density = math.exp(-root * root / 2.0) / math.sqrt(2.0 * math.pi)
            return float(ndtr(-root)) + density * (1.0 / turn - 1.0 / root)
        shorter = min(1.0, 1.0 / float(np.abs(moved).max()))
        tilt, at = tilt + shorter * step, at + shorter * moved
    return math.exp(-_gain(odds, at, included)) * math.sqrt(2.0 * math.pi * total)


def _gain(odds: Floats, tilted: Floats, included: Coins) -> float:
    """Log-likelihood ratio of the coins, at the tilted log odds against these; not below 0."""
    change = included @ (tilted - odds) - (np.logaddexp(0.0, tilted) - np.logaddexp(0.0, odds)).sum()
    return max(0.0, float(change))


def _intercept(log_odds: Floats, inside: int) -> float:
    """The constant with which the chances add up to the number of coins that are "in": Newton's steps, halving where
    one would leave what is known to hold it."""
    low, high = -float(log_odds.max()) - 40.0, -float(log_odds.min()) + 40.0
    at = min(max(-float(np.median(log_odds)), low), high)
    for _ in range(200):
        chance = expit(log_odds + at)
        excess = float(chance.sum()) - inside
        low, high = (low, at) if excess > 0.0 else (at, high)
        slope = float(chance @ (1.0 - chance))
        step = at - excess / slope if slope > 0.0 else low
        if abs(step - at) < 1e-9 * max(1.0, abs(at)):
            return step
        at = step if low < step < high else (low + high) / 2.0
    return at
