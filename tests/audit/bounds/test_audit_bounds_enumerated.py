"""The bounds from scores and coins to their answer, every outcome of a small mechanism counted: no simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from dptrain.audit.bounds.claim import p_value, p_value_independent
from dptrain.audit.bounds.clopper_pearson import clopper_pearson
from dptrain.audit.bounds.curve import dp_curve, gaussian_curve, gaussian_epsilon
from dptrain.audit.bounds.f_dp import f_dp
from dptrain.audit.bounds.one_run import one_run

ROUNDING = 1e-9


def outcomes(canaries: int, epsilon: float, delta: float):
    """(probability, scores, coins) of (epsilon, delta) randomised response with coins that are told with chance delta.

    Every coin is told truly with chance delta, as one of two loud scores; else by a quiet score that is right with
    odds of e^epsilon. Every canary is (epsilon, delta)-DP by itself, and so is each beside all others.
    """
    right = (1.0 - delta) / (1.0 + math.exp(-epsilon))
    for coins in itertools.product((False, True), repeat=canaries):
        included = np.array(coins)
        for kinds in itertools.product(range(3 if delta else 2), repeat=canaries):
            chance = 0.5**canaries
            scores = np.empty(canaries)
            for i, kind in enumerate(kinds):
                chance *= (right, 1.0 - delta - right, delta)[kind]
                told = included[i] if kind != 1 else not included[i]
                scores[i] = (2.0 if told else -2.0) * (5.0 if kind == 2 else 1.0) + 0.01 * i
            yield chance, scores, included


@pytest.mark.parametrize(("canaries", "delta"), [(1, 0.0), (2, 0.0), (8, 0.0), (1, 0.05), (5, 0.05)])
@pytest.mark.parametrize("epsilon", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95])
def test_one_run_is_above_the_truth_no_more_often_than_it_says(
    canaries: int, delta: float, epsilon: float, confidence: float
) -> None:
    """All 4^m or 6^m outcomes, weighted; numbers of guesses, ties and the shared error included."""
    whole = missed = 0.0
    for chance, scores, included in outcomes(canaries, epsilon, delta):
        whole += chance
        missed += chance * (one_run(scores, included, delta, confidence).epsilon > epsilon + 1e-6)
    assert whole == pytest.approx(1.0, abs=1e-12)
    assert missed <= 1.0 - confidence + ROUNDING


def test_one_run_is_not_idle() -> None:
    """Where every guess is right it shows something: the test above is not passed by saying 0."""
    included = np.array([True, False] * 4)
    scores = np.array([(1.0 if coin else 0.0) + 0.01 * i for i, coin in enumerate(included)])
    assert one_run(scores, included, 0.0, 0.8).epsilon > 0.5


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("level", [0.01, 0.05, 0.2, 0.5])
def test_the_tests_of_a_claim_reject_an_honest_mechanism_no_more_often_than_the_level(
    epsilon: float, level: float
) -> None:
    """Randomised response against its own claim (epsilon, 0): both p-values, 4^6 outcomes."""
    curve = dp_curve(epsilon, 0.0)
    for test in (p_value, p_value_independent):
        rejected = sum(
            chance for chance, scores, coins in outcomes(6, epsilon, 0.0) if test(scores, coins, curve).p_value <= level
        )
        assert rejected <= level + ROUNDING


@pytest.mark.parametrize("confidence", [0.5, 0.8])
def test_the_other_exact_bounds_keep_their_word(confidence: float) -> None:
    """A Gaussian that is read by its sign alone: its curve is above the Gaussian's, so ``f_dp`` holds; canaries are
    independent and alike, so ``clopper_pearson`` holds. Signs are right with chance Phi(mu / 2)."""
    mu, delta = 1.2, 1e-5
    truth = gaussian_epsilon(mu, delta)
    right = 0.5 * (1.0 + math.erf(mu / 2.0 / math.sqrt(2.0)))
    odds = math.log(right / (1.0 - right))
    assert gaussian_curve(mu).most_found(np.array([1.0 - right]))[0] >= right - 1e-9
    for bound in (f_dp, clopper_pearson):
        missed = sum(
            chance
            for chance, scores, coins in outcomes(7, odds, 0.0)
            if bound(scores, coins, delta, confidence).epsilon > truth + 1e-3
        )
        assert missed <= 1.0 - confidence + ROUNDING
