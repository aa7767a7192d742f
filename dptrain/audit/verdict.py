"""Says what the attacks showed about a claimed (epsilon, delta), and what they did not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dptrain.audit.intervals import proportion_high, proportion_low

NONE_CLAIMED_DELTA = 1e-5
"""Delta at which a lower bound is stated where nothing is claimed."""


def verdict(
    result: Mapping[str, Any], epsilon: float | None, delta: float | None, confidence: float, unit: str = "record"
) -> dict[str, Any]:
    """Holds what ``run_attacks`` found against the region that (epsilon, delta)-DP allows.

    Kairouz, Oh and Viswanath 2015 ("The composition theorem for differential privacy"), theorem 2.1: every
    test of "trained on this unit" has TPR <= e^epsilon FPR + delta and 1 - FPR <= e^epsilon (1 - TPR) + delta.
    A rule whose bounds (TPR at least tpr_low, FPR at most fpr_high) break either one contradicts the claim.

    Guarantee: if the claim holds and the assumptions below do, ``rejected`` is true with probability at most
    1 - confidence over all attacks, rates and both inequalities together.

    Assumptions: members and non-members are a fixed split here, not coin flips. The bounds compare training
    units with held-out units of one trained model, assume the two are drawn alike, and count units as
    independent. A shift between the two shows up as leakage; a leak that these attacks do not use does not.

    Args:
        result: what ``run_attacks`` returned, or internal/audit.json read back.
        epsilon: the claim, or None where none is made (a non-private run).
        delta: the claim's delta, or None.
        confidence: what ``run_attacks`` was given.
        unit: what one observation is, for the sentence: record or user.

    Returns:
        "verdict", the sentence; "rejected", whether the claim is contradicted (exit code 4); "epsilon_low", the
        largest epsilon shown at the claim's delta; "epsilon_ceiling", the largest that samples of this size can
        show; "tests", the number of pairs of bounds among which the error 1 - confidence is shared.

    Raises:
        ValueError: the bounds were made at another confidence.
    """
    if confidence != result["confidence"]:
        raise ValueError(f"confidence={confidence}, but the bounds were made at {result['confidence']}")
    at = delta if delta is not None else NONE_CLAIMED_DELTA
    pairs = [bound for attack in result["attacks"] for bound in attack["bounds"]]
    shown = max(epsilon_shown(bound["tpr_low"], bound["fpr_high"], at) for bound in pairs)
    ceiling = _ceiling(result, at, len(pairs))
    return {
        "verdict": _sentence(result, epsilon, at, unit, shown, ceiling, len(pairs)),
        "rejected": epsilon is not None and shown > epsilon,
        "epsilon_low": shown,
        "epsilon_ceiling": ceiling,
        "tests": len(pairs),
    }


def epsilon_shown(tpr_low: float, fpr_high: float, delta: float) -> float:
    """The smallest epsilon >= 0 that allows TPR >= tpr_low at FPR <= fpr_high, by either inequality."""
    smallest = 0.0
    for more, less in ((tpr_low, fpr_high), (1 - fpr_high, 1 - tpr_low)):
        if more > delta and less > 0:
            smallest = max(smallest, math.log((more - delta) / less))
    return smallest


def _ceiling(result: Mapping[str, Any], delta: float, tests: int) -> float:
    """What a perfect separation of the same sizes would show."""
    alpha = (1 - result["confidence"]) / tests
    n, m = result["members"], result["non_members"]
    return epsilon_shown(proportion_low(n, n, alpha / 2), proportion_high(0, m, alpha / 2), delta)


def _sentence(
    result: Mapping[str, Any],
    epsilon: float | None,
    delta: float,
    unit: str,
    shown: float,
    ceiling: float,
    tests: int,
) -> str:
    level = f"{100 * result['confidence']:g} % confidence over all {tests} tests together"
    sizes = f"{result['members']} members and {result['non_members']} non-members (one observation is one {unit})"
    alike = "It compares training rows with held-out rows and assumes that they are drawn alike and independent."
    found = f"the attacks show an epsilon of at least {shown:.3g} at delta {delta:g} ({level}, {sizes})"
    limit = (
        f"Samples of this size cannot show more than epsilon {ceiling:.3g}, "
        "and a stronger attack may find what these did not."
    )
    if epsilon is None:
        return f"No epsilon is claimed: {found}. {limit} {alike}"
    if shown > epsilon:
        return f"Rejected: {found}, more than the claimed {epsilon:.4g}. {alike}"
    return f"No violation larger than the claimed epsilon {epsilon:.4g} found: {found}. {limit} {alike}"
