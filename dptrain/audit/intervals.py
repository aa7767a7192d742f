"""Intervals for what an attack found, each with what it covers and under which assumption.

Members and non-members are each taken as independent draws, the members' scores from one law and the
non-members' from another; that holds exactly for held-out units given the model, and as an approximation for
the units that the model was trained on. All intervals are two-sided: half of 1 - confidence on each side.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import bdtr, betaincinv, expit, ndtri
from scipy.stats import rankdata

Floats = NDArray[np.float64]

DELONG_PAIRS = 10
"""DeLong's interval is used where min(m, n) * min(AUC, 1 - AUC) is at least this (see ``auc_interval``),"""
DELONG_UNTIED = 20
"""and this many units on each side differ from that side's commonest score."""


def proportion_low(successes: int, trials: int, alpha: float) -> float:
    """Clopper-Pearson lower bound, exact: above the true proportion with probability at most ``alpha``."""
    return float(betaincinv(successes, trials - successes + 1, alpha)) if successes > 0 else 0.0


def proportion_high(successes: int, trials: int, alpha: float) -> float:
    """Clopper-Pearson upper bound, exact: below the true proportion with probability at most ``alpha``."""
    return float(betaincinv(successes + 1, trials - successes, 1 - alpha)) if successes < trials else 1.0


def tpr_interval(members: Floats, non_members: Floats, fpr: float, confidence: float) -> tuple[float, float]:
    """Interval for the largest TPR that any threshold on this score has, in the population, at FPR <= ``fpr``.

    The threshold is not known but chosen on the non-members, so a Clopper-Pearson interval at the chosen
    threshold alone would be too narrow. Each side's error a = (1 - confidence) / 2 is split in two:

    - the flagging rule "score > (k+1)-th largest non-member score" has a true FPR above f with probability at
      most P(Binomial(m, f) <= k) (order statistics; ties only lower it). Low: the largest k for which this is
      at most a / 2, and a Clopper-Pearson lower bound of that rule's TPR with what is left of a. Where no k
      will do (m too small: 436 non-members for 1 % at 95 %), the low end is 0.
    - "score >= k-th largest" has a true FPR of at most f with probability at most P(Binomial(m, f) >= k).
      High: the smallest k for which this is at most a / 2, and the Clopper-Pearson upper bound likewise.

    Guarantee: covers with probability at least ``confidence``, at every sample size, for every pair of laws,
    ties included; the assumption is independence (see the module's docstring).

    Args:
        members: (n,) scores, n at least 1.
        non_members: (m,) scores, m at least 1.
        fpr: in (0, 1).
        confidence: in (0, 1).
    """
    m, n, side = len(non_members), len(members), (1 - confidence) / 2
    descending = np.sort(non_members)[::-1]
    below = bdtr(np.arange(m), m, fpr)  # (m,): P(Binomial <= k), k = 0..m-1
    low = 0.0
    if below[0] <= side / 2:
        k = int(np.flatnonzero(below <= side / 2)[-1])
        low = proportion_low(int((members > descending[k]).sum()), n, side - float(below[k]))
    high = 1.0
    above = 1 - below  # (m,): P(Binomial >= k), k = 1..m
    enough = np.flatnonzero(above <= side / 2)
    if enough.size:
        k = int(enough[0]) + 1
        high = proportion_high(int((members >= descending[k - 1]).sum()), n, side - float(above[k - 1]))
    return low, high


def rates_bound(members: Floats, non_members: Floats, false_positives: int, alpha: float) -> tuple[float, float]:
    """(lower bound of the TPR, upper bound of the FPR) of the rule that flags at most so many non-members.

    The rule is "score > (k+1)-th largest non-member score" with k = ``false_positives``: chosen without
    looking at members. Its true FPR exceeds the Clopper-Pearson upper bound for k of m with probability at
    most ``alpha`` / 2 (it is at most a Beta(k+1, m-k) variable); its TPR, given the rule, is binomial.

    Guarantee: both bounds hold together with probability at least 1 - ``alpha``, ties included.
    """
    m, n = len(non_members), len(members)
    if false_positives >= m:
        return 0.0, 1.0
    threshold = np.partition(non_members, m - 1 - false_positives)[m - 1 - false_positives]
    flagged = int((members > threshold).sum())
    return proportion_low(flagged, n, alpha / 2), proportion_high(false_positives, m, alpha / 2)


def auc_interval(members: Floats, non_members: Floats, auc: float, confidence: float) -> tuple[float, float]:
    """Interval for the population's AUC, P(member scores higher) + P(tie) / 2.

    Where min(m, n) * min(AUC, 1 - AUC) is at least 10 and at least 20 units on each side differ from that
    side's commonest score: DeLong, DeLong and Clarke-Pearson 1988 on the logit scale. It is asymptotic: its
    coverage is simulated in tests/audit/test_audit_intervals.py.

    Otherwise (near 0 or 1, small samples, scores that are nearly all tied) Hoeffding 1963, section 5: the AUC
    is a mean over pairings of min(m, n) independent pairs, so min(m, n) * KL(AUC found || AUC) is at most
    log(2 / (1 - confidence)) with probability at least ``confidence``, whatever the laws.

    Args:
        members: (n,) scores.
        non_members: (m,) scores.
        auc: the AUC of these scores.
        confidence: in (0, 1).
    """
    pairs = min(len(members), len(non_members))
    untied = min(_untied(members), _untied(non_members))
    if pairs * min(auc, 1 - auc) < DELONG_PAIRS or untied < DELONG_UNTIED:
        return _hoeffding(auc, pairs, math.log(2 / (1 - confidence)))
    error = _delong_error(members, non_members)
    logit, scaled = math.log(auc / (1 - auc)), error / (auc * (1 - auc))
    half = float(ndtri((1 + confidence) / 2)) * scaled
    return float(expit(logit - half)), float(expit(logit + half))


def _untied(scores: Floats) -> int:
    """How many scores differ from the commonest one."""
    return scores.size - int(np.unique(scores, return_counts=True)[1].max())


def _delong_error(members: Floats, non_members: Floats) -> float:
    """DeLong's standard error of the AUC, by mid-ranks (Sun and Xu 2014)."""
    n, m = len(members), len(non_members)
    ranks = rankdata(np.concatenate([members, non_members]))
    wins = (ranks[:n] - rankdata(members)) / m  # (n,): share of non-members below each member
    losses = 1 - (ranks[n:] - rankdata(non_members)) / n  # (m,): share of members above each non-member
    return math.sqrt(float(np.var(wins, ddof=1)) / n + float(np.var(losses, ddof=1)) / m)


def _hoeffding(found: float, pairs: int, limit: float) -> tuple[float, float]:
    def excess(true: float) -> float:
        return pairs * _divergence(found, true) - limit

    tiny = 1e-12
    low = brentq(excess, tiny, found) if found > tiny and excess(tiny) > 0 else 0.0
    high = brentq(excess, found, 1 - tiny) if found < 1 - tiny and excess(1 - tiny) > 0 else 1.0
    return float(low), float(high)  # type: ignore[arg-type]


def _divergence(p: float, q: float) -> float:
    """KL(Bernoulli(p) || Bernoulli(q)) in nats."""
    left = p * math.log(p / q) if p > 0 else 0.0
    right = (1 - p) * math.log((1 - p) / (1 - q)) if p < 1 else 0.0
    return left + right
