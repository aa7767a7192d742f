"""The parametric bound: scores are Gaussian with one spread, and how far apart are the two sides?

Under N(a + mu s, s^2) for those included and N(a, s^2) for those left out, with unknown a and s, the two-sample t of
n + k scores is noncentral t with n + k - 2 degrees of freedom and noncentrality mu / sqrt(1/n + 1/k). Its exact
quantiles give a lower bound on mu, and mu gives epsilon at delta (Dong, Roth & Su 2022, Corollary 1).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import nctdtr

from dptrain.audit.bounds.bound import Bound, Coins, Floats, checked
from dptrain.audit.bounds.curve import gaussian_epsilon

ASSUMPTION = (
    "holds where scores are independent and exactly Gaussian with the same spread on both sides; on other "
    "mechanisms it can claim several times the true epsilon"
)


def gaussian(scores: Floats, included: Coins, delta: float, confidence: float) -> Bound:
    """Exact noncentral t bound on mu, as epsilon.

    Guarantee: under the model above, the bound is above epsilon with probability at most 1 - confidence. Nothing is
    promised without it: on a Laplace mechanism it is several times too high (docs/results/bounds.md).

    Args:
        scores: (m,).
        included: (m,).
        delta: in (0, 1).
        confidence: in (0, 1).

    Raises:
        ValueError: see ``checked``; delta is 0.
    """
    scores, included = checked(scores, included, delta, confidence)
    if delta == 0.0:
        raise ValueError("delta=0: a Gaussian mechanism has no epsilon there")
    mu = gaussian_shift(scores[included], scores[~included], confidence)
    epsilon = gaussian_epsilon(mu, delta)
    return Bound("gaussian", epsilon, delta, confidence, ASSUMPTION, {"mu": mu, "canaries": len(scores)})


def gaussian_shift(inside: Floats, outside: Floats, confidence: float) -> float:
    """Lower confidence bound on mu, rounded down by at most 1e-6; 0 where a side has too few scores or none differ."""
    n, k = len(inside), len(outside)
    if min(n, k) < 1 or n + k < 3:
        return 0.0
    spread = math.sqrt((n * float(np.var(inside)) + k * float(np.var(outside))) / (n + k - 2))
    distance = float(inside.mean() - outside.mean())
    if distance <= 0.0 or spread <= 1e-12 * float(np.abs(np.concatenate([inside, outside])).max()):
        return 0.0  # scores that are all alike say nothing; two constants are no Gaussian sample
    unit = math.sqrt(1.0 / n + 1.0 / k)
    t = distance / (spread * unit)
    low, high = 0.0, t + 40.0
    if float(nctdtr(n + k - 2, 0.0, t)) < confidence:
        return 0.0
    while high - low > 1e-6:
        middle = (low + high) / 2.0
        low, high = (middle, high) if _cdf(n + k - 2, middle, t) >= confidence else (low, middle)
    return float(low * unit)


def _cdf(degrees: int, noncentrality: float, t: float) -> float:
    value = float(nctdtr(degrees, noncentrality, t))
    return value if math.isfinite(value) else 0.0
