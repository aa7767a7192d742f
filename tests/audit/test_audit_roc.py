"""The ROC curve against brute force, with ties, and its thinning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dptrain.audit.roc import allowed_count, needed_for, roc_curve, thinned, tpr_at

scores = st.lists(st.integers(-3, 3), min_size=1, max_size=12).map(lambda x: np.array(x, dtype=np.float64))


@given(scores, scores)
def test_area_is_the_chance_that_a_member_ranks_higher_ties_half(members, others) -> None:
    wins = (members[:, None] > others).mean() + 0.5 * (members[:, None] == others).mean()
    assert roc_curve(members, others).auc == pytest.approx(wins, abs=1e-12)


@given(scores, scores, st.floats(0.001, 0.999))
def test_tpr_at_is_the_best_of_all_thresholds_and_never_interpolated(members, others, fpr: float) -> None:
    best = 0.0
    for threshold in [*members, *others, np.inf]:
        if (others >= threshold).sum() <= fpr * len(others):
            best = max(best, (members >= threshold).mean())
    assert tpr_at(roc_curve(members, others), fpr) == best


@given(scores, scores)
def test_curve_climbs_from_corner_to_corner_one_point_a_distinct_score(members, others) -> None:
    roc = roc_curve(members, others)
    assert (roc.fpr[0], roc.tpr[0], roc.fpr[-1], roc.tpr[-1]) == (0, 0, 1, 1)
    assert len(roc.fpr) == 1 + len({*members, *others})
    assert (np.diff(roc.fpr) >= 0).all() and (np.diff(roc.tpr) >= 0).all()


def test_a_tie_is_never_split() -> None:
    roc = roc_curve(np.zeros(10), np.zeros(10))
    assert tpr_at(roc, 0.5) == 0.0
    assert roc.auc == 0.5


def test_infinite_scores_are_scores() -> None:
    roc = roc_curve(np.array([np.inf, 1.0]), np.array([-np.inf, 0.0]))
    assert roc.auc == 1.0
    assert tpr_at(roc, 0.1) == 1.0


@pytest.mark.parametrize(("fpr", "size", "count"), [(0.29, 100, 29), (0.01, 360, 3), (0.001, 1000, 1), (0.001, 999, 0)])
def test_counts_allowed_do_not_suffer_from_rounding(fpr: float, size: int, count: int) -> None:
    assert allowed_count(fpr, size) == count


@pytest.mark.parametrize(("fpr", "needed"), [(0.001, 1000), (0.01, 100), (0.03, 34), (0.1, 10)])
def test_non_members_needed(fpr: float, needed: int) -> None:
    assert needed_for(fpr) == needed


@pytest.mark.parametrize(("members", "others"), [([], [1.0]), ([1.0], []), ([np.nan], [1.0])])
def test_empty_and_unordered_scores_are_refused(members: list[float], others: list[float]) -> None:
    with pytest.raises(ValueError):
        roc_curve(np.array(members), np.array(others))


@pytest.mark.parametrize(("members", "others", "digits"), [(3000, 5000, 9), (3000, 5000, 2), (50, 60, 9), (9000, 5, 9)])
def test_thinning_keeps_true_points_and_the_low_end(members: int, others: int, digits: int) -> None:
    rng = np.random.default_rng(1)
    roc = roc_curve(rng.normal(0.5, 1, members).round(digits), rng.normal(0, 1, others).round(digits))
    fpr, tpr = thinned(roc, 400)
    assert len(fpr) == len(tpr) <= 400
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    points = set(zip(roc.fpr, roc.tpr, strict=True))
    assert all(point in points for point in zip(fpr, tpr, strict=True))
    assert all(t == tpr_at(roc, f) for f, t in zip(fpr[1:], tpr[1:], strict=True) if f > 0)
    # Every attained rate among the first false positives is there.
    attained = np.unique(roc.false_positives)
    assert set(attained[attained <= 20] / others) <= set(fpr)
