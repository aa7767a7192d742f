"""Coverage of the intervals by simulation. Seeds are fixed, so these tests do not flicker; each states the chance
that it would fail for another seed although the interval keeps its promise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, binomtest, norm

from dptrain.audit.intervals import auc_interval, proportion_high, proportion_low, rates_bound, tpr_interval
from dptrain.audit.roc import roc_curve, tpr_at

Draw = Callable[[np.random.Generator, int], NDArray]


def gaussian(shift: float, scale: float = 1.0) -> Draw:
    return lambda rng, size: rng.normal(shift, scale, size)


def rounded(shift: float) -> Draw:
    return lambda rng, size: rng.normal(shift, 1, size).round()


def rare(share: float) -> Draw:
    """Nearly all scores tied."""
    return lambda rng, size: (rng.random(size) < share).astype(float)


def misses(
    interval: Callable[[NDArray, NDArray], tuple[float, float]], draws: tuple[Draw, Draw], sizes, truth, runs
) -> int:
    rng = np.random.default_rng(5)
    count = 0
    for _ in range(runs):
        low, high = interval(draws[0](rng, sizes[0]), draws[1](rng, sizes[1]))
        count += not low - 1e-9 <= truth <= high + 1e-9
    return count


def allowed(runs: int, rate: float) -> int:
    """Misses that a true miss rate of ``rate`` exceeds with probability 1e-4."""
    return int(binom.isf(1e-4, runs, rate))


def auc(members: NDArray, others: NDArray) -> tuple[float, float]:
    return auc_interval(members, others, roc_curve(members, others).auc, 0.95)


@pytest.mark.parametrize(("successes", "trials"), [(0, 20), (20, 20), (3, 20), (1, 1), (0, 1), (400, 1000)])
def test_proportions_are_clopper_pearson(successes: int, trials: int) -> None:
    exact = binomtest(successes, trials).proportion_ci(0.95, method="exact")
    assert proportion_low(successes, trials, 0.025) == pytest.approx(exact.low, abs=1e-12)
    assert proportion_high(successes, trials, 0.025) == pytest.approx(exact.high, abs=1e-12)


def test_auc_interval_covers_the_null_at_360_a_side() -> None:
    """DeLong's coverage here is 95.3 %; below 94 % in 2,000 runs has a chance of 0.3 %."""
    runs = 2000
    assert misses(auc, (gaussian(0), gaussian(0)), (360, 360), 0.5, runs) <= 0.06 * runs


@pytest.mark.parametrize("sizes", [(360, 360), (1437, 360), (100, 100), (30, 30), (25, 1000)])
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 3.0), (0.5, 1.0), (1.0, 1.0), (2.0, 1.0), (3.0, 1.0)])
def test_auc_interval_covers_gaussian_shifts(sizes: tuple[int, int], shift: float, scale: float) -> None:
    """Asymptotic, so 6 % of misses are granted; chance of a false alarm 1e-4 a case."""
    truth = float(norm.cdf(shift / np.hypot(1, scale)))
    assert misses(auc, (gaussian(shift, scale), gaussian(0)), sizes, truth, 400) <= allowed(400, 0.06)


@pytest.mark.parametrize("sizes", [(360, 360), (1437, 360), (25, 1000), (2000, 100)])
def test_auc_interval_survives_scores_that_are_nearly_all_tied(sizes: tuple[int, int]) -> None:
    """Plain DeLong covers 24 % at (25, 1000). Chance of a false alarm 1e-4 a case."""
    assert misses(auc, (rare(0.01), rare(0.01)), sizes, 0.5, 400) <= allowed(400, 0.06)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_auc_interval_has_width_where_delong_has_none(value: float) -> None:
    members, others = np.full(50, value), np.full(60, 1 - value)
    low, high = auc(members, others)
    assert low <= value <= high
    assert 0.05 < high - low < 0.2
    assert auc(np.zeros(50), np.zeros(60)) == pytest.approx((0.31, 0.69), abs=0.02)


def best_tpr(shift: float, fpr: float) -> float:
    return float(norm.sf(norm.isf(fpr) - shift))


@pytest.mark.parametrize(
    ("sizes", "fpr"), [((360, 360), 0.01), ((3000, 1000), 0.01), ((2000, 10_000), 0.001), ((50, 100), 0.1)]
)
@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_tpr_interval_covers_the_best_threshold_of_the_population(
    sizes: tuple[int, int], fpr: float, shift: float
) -> None:
    """Exact at every size; chance of a false alarm below 1e-4 a case."""

    def interval(members: NDArray, others: NDArray) -> tuple[float, float]:
        return tpr_interval(members, others, fpr, 0.95)

    truth = best_tpr(shift, fpr)
    assert misses(interval, (gaussian(shift), gaussian(0)), sizes, truth, 300) <= allowed(300, 0.05)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_tpr_interval_covers_with_ties(shift: float) -> None:
    """Scores are whole numbers: the best test flags the largest tail of at most 10 %. False alarm below 1e-4."""
    tails = norm.sf(np.arange(-6, 6) + 0.5)
    edge = np.arange(-6, 6)[np.flatnonzero(tails <= 0.1)[0]] + 0.5
    truth = float(norm.sf(edge - shift))

    def interval(members: NDArray, others: NDArray) -> tuple[float, float]:
        return tpr_interval(members, others, 0.1, 0.95)

    assert misses(interval, (rounded(shift), rounded(0)), (500, 500), truth, 400) <= allowed(400, 0.05)


def test_clopper_pearson_at_the_chosen_threshold_alone_would_not_cover() -> None:
    """Why ``tpr_interval`` is wider: the usual interval misses far more than one time in twenty."""

    def usual(members: NDArray, others: NDArray) -> tuple[float, float]:
        flagged = round(tpr_at(roc_curve(members, others), 0.01) * len(members))
        return proportion_low(flagged, len(members), 0.025), proportion_high(flagged, len(members), 0.025)

    missed = misses(usual, (gaussian(1), gaussian(0)), (1437, 360), best_tpr(1, 0.01), 200)
    assert missed > 0.4 * 200


def test_tpr_interval_says_something_where_samples_are_large() -> None:
    rng = np.random.default_rng(2)
    members, others = rng.normal(2, 1, 20_000), rng.normal(0, 1, 20_000)
    low, high = tpr_interval(members, others, 0.01, 0.95)
    assert low < best_tpr(2, 0.01) < high
    assert high - low < 0.1
    assert tpr_interval(members[:300], others[:300], 0.01, 0.95)[0] == 0.0  # 436 are needed for a low end


@pytest.mark.parametrize("fpr", [0.01, 0.1])
def test_tpr_interval_holds_the_point_found(fpr: float) -> None:
    rng = np.random.default_rng(3)
    for size in (100, 437, 2000):
        members, others = rng.normal(1, 1, size).round(1), rng.normal(0, 1, size).round(1)
        low, high = tpr_interval(members, others, fpr, 0.95)
        assert low <= tpr_at(roc_curve(members, others), fpr) <= high


@pytest.mark.parametrize("count", [0, 3, 50])
@pytest.mark.parametrize("decimals", [12, 0])
def test_rates_bound_holds_for_both_rates_together(count: int, decimals: int) -> None:
    """True rates of the rule chosen, from 200,000 fresh scores; chance of a false alarm below 1e-4 a case."""
    rng = np.random.default_rng(4)
    fresh = np.sort(rng.normal(0, 1, 200_000).round(decimals)), np.sort(rng.normal(1, 1, 200_000).round(decimals))
    runs, wrong = 400, 0
    for _ in range(runs):
        members, others = rng.normal(1, 1, 300).round(decimals), rng.normal(0, 1, 200).round(decimals)
        threshold = np.sort(others)[::-1][count]
        fpr, tpr = (1 - np.searchsorted(s, threshold, side="right") / len(s) for s in fresh)
        tpr_low, fpr_high = rates_bound(members, others, count, 0.1)
        wrong += tpr_low > tpr + 1e-3 or fpr_high < fpr - 1e-3
    assert wrong <= allowed(runs, 0.1)


def test_rates_bound_of_a_rule_that_flags_everyone_says_nothing() -> None:
    assert rates_bound(np.ones(5), np.ones(4), 4, 0.05) == (0.0, 1.0)
