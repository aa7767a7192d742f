"""What every bound and test refuses, and what it says where there is nothing to see."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dptrain.audit.bounds.bound import Bound
from dptrain.audit.bounds.claim import p_value, p_value_independent
from dptrain.audit.bounds.clopper_pearson import clopper_pearson
from dptrain.audit.bounds.curve import dp_curve
from dptrain.audit.bounds.f_dp import f_dp
from dptrain.audit.bounds.gaussian import gaussian
from dptrain.audit.bounds.one_run import one_run
from dptrain.audit.bounds.optimal import optimal
from dptrain.audit.bounds.score_law import SampledGaussian


def of_own_law(scores, included, delta: float, confidence: float) -> Bound:
    return optimal(scores, included, delta, confidence, SampledGaussian(1.0, 1.0, 1))


BOUNDS = [one_run, f_dp, clopper_pearson, gaussian, of_own_law]
every_bound = pytest.mark.parametrize("bound", BOUNDS, ids=lambda b: b.__name__)


@every_bound
@pytest.mark.parametrize(
    ("scores", "included"),
    [
        (np.zeros(0), np.zeros(0, bool)),
        (np.zeros((2, 2)), np.zeros((2, 2), bool)),
        (np.zeros(3), np.zeros(2, bool)),
        (np.array([0.0, np.nan]), np.array([True, False])),
        (np.array([0.0, np.inf]), np.array([True, False])),
        (np.zeros(2), np.array([0.5, 1.0])),
    ],
)
def test_what_is_no_audit_is_refused(bound: Callable[..., Bound], scores, included) -> None:
    with pytest.raises(ValueError):
        bound(scores, included, 1e-5, 0.95)
    with pytest.raises(ValueError):
        p_value(scores, included, dp_curve(1.0, 1e-5))
    with pytest.raises(ValueError):
        p_value_independent(scores, included, dp_curve(1.0, 1e-5))


@every_bound
@pytest.mark.parametrize(("delta", "confidence"), [(-0.1, 0.95), (1.0, 0.95), (np.nan, 0.95), (1e-5, 0.0), (1e-5, 1.0)])
def test_numbers_out_of_range_are_refused(bound: Callable[..., Bound], delta: float, confidence: float) -> None:
    with pytest.raises(ValueError):
        bound(np.zeros(4), np.array([True, False] * 2), delta, confidence)


@every_bound
@pytest.mark.parametrize("coins", [np.ones(200, bool), np.zeros(200, bool)])
def test_coins_that_all_fell_alike_show_nothing_but_luck(bound: Callable[..., Bound], coins) -> None:
    """No test of scores against coins is left; a guess of "in" is right by luck alone at every number of guesses."""
    found = bound(np.linspace(0, 1, 200), coins, 1e-5, 0.95)
    assert found.epsilon == 0.0
    assert found.assumption and found.confidence == 0.95 and found.delta == 1e-5


@every_bound
def test_one_canary_shows_nothing_at_95_percent(bound: Callable[..., Bound]) -> None:
    for coin in (True, False):
        assert bound(np.array([5.0]), np.array([coin]), 1e-5, 0.95).epsilon == 0.0


@every_bound
def test_scores_that_are_all_equal_show_nothing(bound: Callable[..., Bound]) -> None:
    assert bound(np.full(1000, 7.0), np.arange(1000) < 500, 1e-5, 0.95).epsilon == 0.0


@every_bound
def test_one_canary_among_coins_given_as_numbers(bound: Callable[..., Bound]) -> None:
    rng = np.random.default_rng(0)
    coins = rng.random(300) < 0.5
    scores = 3.0 * coins + rng.standard_normal(300)
    assert bound(scores, coins.astype(int), 1e-5, 0.95) == bound(scores, coins, 1e-5, 0.95)  # type: ignore[arg-type]


@every_bound
def test_more_confidence_never_shows_more(bound: Callable[..., Bound]) -> None:
    rng = np.random.default_rng(1)
    coins = rng.random(500) < 0.5
    scores = 1.5 * (1.5 * coins + rng.standard_normal(500))
    found = [bound(scores, coins, 1e-5, confidence).epsilon for confidence in (0.8, 0.95, 0.99, 0.9999)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.5


@pytest.mark.parametrize("bound", [f_dp, gaussian, of_own_law], ids=lambda b: b.__name__)
def test_no_gaussian_epsilon_at_delta_0(bound: Callable[..., Bound]) -> None:
    with pytest.raises(ValueError, match="delta=0"):
        bound(np.arange(4.0), np.array([True, False] * 2), 0.0, 0.95)
