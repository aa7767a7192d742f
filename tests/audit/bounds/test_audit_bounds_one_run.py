"""The one-run bound against the worst mechanism that a linear programme finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mechanisms import worst_by_counts, worst_tail
from scipy.special import expit
from scipy.stats import binom

from dptrain.audit.bounds.bound import LARGEST_EPSILON
from dptrain.audit.bounds.guesses import guess_counts, right_guesses
from dptrain.audit.bounds.one_run import one_run, one_run_epsilon, tail


@pytest.mark.parametrize(("canaries", "guesses"), [(1, 1), (2, 1), (2, 2), (3, 2), (3, 3)])
@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.1), (0.7, 0.0), (0.7, 0.05), (2.0, 0.01)])
def test_no_mechanism_guesses_better_than_the_bound(canaries: int, guesses: int, epsilon: float, delta: float) -> None:
    """Every conditional law of guesses given coins, by brute force; and symmetry loses nothing."""
    for right in range(1, guesses + 1):
        worst = worst_tail(canaries, guesses, right, [(epsilon, delta)])
        assert worst == pytest.approx(worst_by_counts(canaries, guesses, right, [(epsilon, delta)]), abs=1e-7)
        assert worst <= tail(canaries, guesses, right, epsilon, delta) + 1e-7


@pytest.mark.parametrize(("canaries", "guesses"), [(12, 12), (30, 12), (40, 40), (60, 24)])
@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 1e-3), (1.0, 1e-3), (1.0, 1e-4), (3.0, 1e-4)])
def test_the_bound_is_what_the_worst_mechanism_reaches(
    canaries: int, guesses: int, epsilon: float, delta: float
) -> None:
    """By the programme in the number of right guesses, for more coins than brute force can do."""
    for right in range(guesses // 2, guesses + 1, 3):
        worst = worst_by_counts(canaries, guesses, right, [(epsilon, delta)])
        assert tail(canaries, guesses, right, epsilon, delta) == pytest.approx(worst, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("canaries", [20, 100, 1000])
@pytest.mark.parametrize("share", [0.1, 0.4, 1.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0, 5.0])
def test_the_tail_is_its_formula(canaries: int, share: float, epsilon: float) -> None:
    """P(B >= v)(1 + m delta max over j <= v of P(B < j) / (j P(B = j))), term by term; the maximum is at v."""
    guesses = max(1, round(share * canaries))
    j = np.arange(guesses + 1)
    at = binom.logpmf(j, guesses, expit(epsilon))
    below = np.logaddexp.accumulate(at)[:-1]  # P(B < j), j from 1
    above = np.logaddexp.accumulate(at[::-1])[::-1]  # P(B >= j), j from 0
    factors = below - np.log(j[1:]) - at[1:]
    for right in range(1, guesses + 1, max(1, guesses // 40)):
        extra = above[right] + np.log(canaries * 1e-5) + factors[:right].max()
        exact = float(np.exp(min(0.0, np.logaddexp(above[right], extra))))
        assert tail(canaries, guesses, right, epsilon, 1e-5) == pytest.approx(exact, rel=1e-8, abs=1e-290)


def test_pure_dp_is_the_binomial_tail_of_randomised_response() -> None:
    for right in (0, 1, 30, 50):
        assert tail(80, 50, right, 1.0, 0.0) == pytest.approx(binom.sf(right - 1, 50, expit(1.0)), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.data(), st.sampled_from([0.0, 1e-6, 1e-3]), st.floats(0.001, 0.3))
def test_more_right_guesses_never_show_less(guesses: int, data: st.DataObject, delta: float, error: float) -> None:
    canaries = data.draw(st.integers(guesses, 400))
    right = data.draw(st.integers(0, guesses - 1))
    fewer = one_run_epsilon(canaries, guesses, right, delta, error)
    assert one_run_epsilon(canaries, guesses, right + 1, delta, error) >= fewer
    assert one_run_epsilon(canaries, guesses, right, delta, error / 2) <= fewer
    assert one_run_epsilon(canaries, guesses, right, delta * 2, error) <= fewer
    if 0.0 < fewer < LARGEST_EPSILON:
        assert tail(canaries, guesses, right, fewer, delta) <= error
        assert tail(canaries, guesses, right, fewer + 1e-5, delta) > error


def test_large_counts_neither_overflow_nor_underflow() -> None:
    found = one_run_epsilon(100_000, 80_000, 80_000, 1e-5, 0.01)
    assert 5.0 < found < 20.0
    assert one_run_epsilon(100_000, 80_000, 40_000, 1e-5, 0.01) == 0.0


def test_the_order_of_canaries_does_not_decide_ties() -> None:
    """Members first and all scores equal: guessing by position would show a large epsilon."""
    included = np.arange(1000) < 500
    assert one_run(np.zeros(1000), included, 1e-5, 0.95).epsilon == 0.0
    (right,) = right_guesses(np.zeros(1000), included, [1000])
    assert 420 < right < 580  # a shuffle: outside with probability below 1e-6


def test_guesses_are_counted_from_both_ends() -> None:
    scores = np.array([3.0, 1.0, 2.0, 0.0])
    included = np.array([True, False, False, False])
    assert right_guesses(scores, included, [1, 2, 3, 4]) == [1, 2, 2, 3]
    assert guess_counts(1) == (1,)
    assert guess_counts(1000) == (20, 50, 100, 200, 400, 800)
    assert guess_counts(3, (1.0,)) == (2,)
    with pytest.raises(ValueError, match="share"):
        guess_counts(10, (0.0,))


def test_impossible_counts_are_refused() -> None:
    for counts in ((5, 6, 1), (5, 5, 6), (5, 0, 0)):
        with pytest.raises(ValueError, match="cannot be"):
            tail(*counts, 1.0, 0.0)
