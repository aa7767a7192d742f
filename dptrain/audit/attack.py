"""Runs the attacks on a model's outputs and puts what they found as plain data. Internal tier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptrain.audit.calibrated import NAME as CALIBRATED
from dptrain.audit.calibrated import applies, calibrated
from dptrain.audit.intervals import auc_interval, rates_bound, tpr_interval
from dptrain.audit.roc import allowed_count, needed_for, roc_curve, thinned, tpr_at
from dptrain.audit.scores import ATTACKS, per_unit
from dptrain.audit.verdict import verdict

__all__ = ["CLAIM_RATES", "attack_result", "run_attacks", "verdict"]

Floats = NDArray[np.float64]

CLAIM_RATES = (0.0, 0.05, 0.2, 0.5)
"""Rates at which the claim is tested beside those asked for: low ones speak about a large epsilon, high ones
about a small one. Fixed before any score is seen; 0 is the strictest rule that flags no held-out unit."""


def run_attacks(
    member_outputs: NDArray,
    member_targets: NDArray,
    member_units: NDArray,
    nonmember_outputs: NDArray,
    nonmember_targets: NDArray,
    nonmember_units: NDArray,
    task: str,
    fprs: Sequence[float],
    confidence: float,
    beside: int = 0,
) -> dict[str, Any]:
    """Every attack's AUC, TPR at the rates asked for, ROC, and the bounds by which a claim can be tested.

    One observation is one unit: scores are averaged over a unit's rows first. Outputs are the model's, in
    evaluation mode; see ``dptrain.audit.scores`` for their shapes by task.

    Args:
        member_outputs: (N, K) outputs on training rows.
        member_targets: (N,).
        member_units: (N,) unit of each row.
        nonmember_outputs: (M, K) outputs on held-out rows.
        nonmember_targets: (M,).
        nonmember_units: (M,), numbered apart from the members'.
        task: binary, multiclass or regression.
        fprs: false-positive rates of interest, each in (0, 1).
        confidence: coverage of every interval by itself, and of all claim bounds together.
        beside: how many attacks made elsewhere share the error of the claim's bounds with these.

    Returns:
        The "members", "non_members" (units), "confidence" and "attacks" of internal/audit.json. An attack's
        "tpr" covers the best threshold at a true rate of at most "fpr" (``tpr_interval``); a rate below
        1 / non_members is refused. Its "bounds" are pairs "tpr_low", "fpr_high", one a rate tested, which hold
        all together, over all attacks, with probability at least ``confidence`` (Bonferroni); ``verdict``
        reads them.

    Raises:
        ValueError: no rows on one side, or shapes that do not fit the task.
    """
    scores = {}
    for name, score in ATTACKS.items():
        members = per_unit(score(member_outputs, member_targets, task), member_units)
        scores[name] = members, per_unit(score(nonmember_outputs, nonmember_targets, task), nonmember_units)
    inside, outside = (len(np.unique(units)) for units in (member_units, nonmember_units))
    if applies(task, outside):
        seen = member_outputs, member_targets, member_units
        scores[CALIBRATED] = calibrated(*seen, nonmember_outputs, nonmember_targets, nonmember_units, task)
    share = len(scores) + beside
    attacks = [attack_result(name, ours, theirs, fprs, confidence, share) for name, (ours, theirs) in scores.items()]
    return {"members": inside, "non_members": outside, "confidence": confidence, "attacks": attacks}


def seconds_tier(task: str, non_members: int) -> list[str]:
    """Names of the attacks that ``run_attacks`` makes."""
    return [*ATTACKS, *([CALIBRATED] if applies(task, non_members) else [])]


def attack_result(
    name: str, members: Floats, non_members: Floats, fprs: Sequence[float], confidence: float, share: int = 1
) -> dict[str, Any]:
    """One attack's entry of internal/audit.json, from scores of units.

    Args:
        name: the attack.
        members: (n,) scores, higher is more like a member.
        non_members: (m,) scores.
        fprs: rates of interest, in (0, 1).
        confidence: coverage.
        share: number of attacks among which the error of the claim's bounds is shared, and that of "auc_together":
            whoever picks the highest AUC of all attacks must read this interval (Bonferroni).
    """
    roc = roc_curve(members, non_members)
    low, high = auc_interval(members, non_members, roc.auc, confidence)
    together = auc_interval(members, non_members, roc.auc, 1 - (1 - confidence) / share)
    fpr, tpr = thinned(roc)
    counts = sorted({allowed_count(rate, roc.non_members) for rate in (*CLAIM_RATES, *fprs)})
    alpha = (1 - confidence) / (share * len(counts))
    return {
        "name": name,
        "auc": {"value": roc.auc, "low": low, "high": high},
        "auc_together": {"low": together[0], "high": together[1], "intervals": share},
        "tpr": [_rate(members, non_members, tpr_at(roc, rate), rate, confidence) for rate in fprs],
        "roc": {"fpr": fpr, "tpr": tpr},
        "bounds": [_bound(members, non_members, count, alpha) for count in counts],
    }


def _rate(members: Floats, non_members: Floats, found: float, rate: float, confidence: float) -> dict[str, Any]:
    if len(non_members) < needed_for(rate):
        return {"fpr": rate, "refused": f"needs at least {needed_for(rate)} non-members; {len(non_members)} given"}
    low, high = tpr_interval(members, non_members, rate, confidence)
    return {"fpr": rate, "tpr": found, "low": low, "high": high}


def _bound(members: Floats, non_members: Floats, false_positives: int, alpha: float) -> dict[str, float]:
    tpr_low, fpr_high = rates_bound(members, non_members, false_positives, alpha)
    return {"false_positives": false_positives, "tpr_low": tpr_low, "fpr_high": fpr_high}
