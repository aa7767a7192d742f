"""The ROC curve in counts: exact with ties, nothing interpolated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Roc:
    """Tests "score >= threshold" for every distinct score, from the strictest, led by the test that flags none."""

    thresholds: Floats  # (P,) descending, +inf first
    false_positives: Counts  # (P,) non-members flagged
    true_positives: Counts  # (P,) members flagged
    members: int
    non_members: int

    @property
    def fpr(self) -> Floats:
        """False-positive rates, ascending, from 0 to 1."""
        return self.false_positives / self.non_members

    @property
    def tpr(self) -> Floats:
        """True-positive rates, ascending, from 0 to 1."""
        return self.true_positives / self.members

    @property
    def auc(self) -> float:
        """P(member scores higher) + P(tie) / 2: the area under the curve with straight lines across ties."""
        return float(np.trapezoid(self.true_positives, self.false_positives)) / (self.members * self.non_members)


def roc_curve(member_scores: Floats, non_member_scores: Floats) -> Roc:
    """The ROC curve of a score. Equal scores are flagged together, so a threshold never splits a tie.

    Args:
        member_scores: (n,), n at least 1; infinities are allowed, NaN is not.
        non_member_scores: (m,), m at least 1.

    Raises:
        ValueError: no score on one side, or NaN among them.
    """
    members, others = np.asarray(member_scores, np.float64), np.asarray(non_member_scores, np.float64)
    if members.size == 0 or others.size == 0:
        raise ValueError(f"{members.size} member and {others.size} non-member scores; at least 1 of each is needed")
    if np.isnan(members).any() or np.isnan(others).any():
        raise ValueError("a score is not a number")
    distinct = np.unique(np.concatenate([members, others]))[::-1]
    return Roc(
        thresholds=np.concatenate([[np.inf], distinct]),
        false_positives=np.concatenate([[0], _at_least(others, distinct)]),
        true_positives=np.concatenate([[0], _at_least(members, distinct)]),
        members=members.size,
        non_members=others.size,
    )


def tpr_at(roc: Roc, fpr: float) -> float:
    """The largest true-positive rate of a test whose false-positive rate is at most ``fpr``; never interpolated."""
    within = roc.false_positives <= allowed_count(fpr, roc.non_members)
    return int(roc.true_positives[within].max()) / roc.members


def allowed_count(fpr: float, non_members: int) -> int:
    """How many of ``non_members`` may be flagged at a rate of at most ``fpr`` (0.29 of 100 is 29, not 28)."""
    return int(np.floor(fpr * non_members * (1 + 1e-12)))


def needed_for(fpr: float) -> int:
    """Fewest non-members that can show a false-positive rate of ``fpr``: one of them flagged is 1 / fpr."""
    return int(np.ceil(1 / fpr * (1 - 1e-12)))


def thinned(roc: Roc, points: int = 400) -> tuple[list[float], list[float]]:
    """At most ``points`` points (FPR, TPR) of the curve, evenly spread on a log axis of FPR.

    Every point kept is a point of the curve: at each kept number of false positives the highest TPR. All of
    the low end is kept until the log spacing passes one false positive a point; both corners are always there.

    Raises:
        ValueError: fewer than 4 points are asked for.
    """
    if points < 4:
        raise ValueError(f"points={points} is below 4")
    last = np.flatnonzero(np.diff(roc.false_positives, append=-1))  # highest TPR of every count
    counts = roc.false_positives[last]
    if len(last) > points - 1:
        wanted = np.unique(np.geomspace(1, roc.non_members, points - 2).round())
        # The last point at or below each wanted count: with ties not every count occurs.
        last = last[np.unique(np.concatenate([[0], np.searchsorted(counts, wanted, side="right") - 1]))]
    keep = np.unique(np.concatenate([[0], last]))
    return roc.fpr[keep].tolist(), roc.tpr[keep].tolist()


def _at_least(scores: Floats, thresholds: Floats) -> Counts:
    return scores.size - np.searchsorted(np.sort(scores), thresholds, side="left")
