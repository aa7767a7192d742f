"""Trade-off curves, the f-DP bound, and the tests of a claim."""

from __future__ import annotations

import numpy as np
import pytest
from mechanisms import worst_by_counts, worst_by_inequalities
from scipy.special import expit
from scipy.stats import beta, binom, norm

from dptrain.audit.bounds.claim import p_value, p_value_independent
from dptrain.audit.bounds.curve import (
    Curve,
    curve_of_event,
    dp_curve,
    gaussian_curve,
    gaussian_epsilon,
    gaussian_mu,
    laplace_curve,
)
from dptrain.audit.bounds.f_dp import GAUSSIAN, LAPLACE, f_dp, tail_at_most
from dptrain.audit.bounds.families import build_family
from dptrain.privacy import accounting

PAIRS = [(0.0, 0.38), (0.5, 0.24), (1.0, 0.127), (2.0, 0.021), (4.0, 1e-4)]
"""A little above the profile of a Gaussian mechanism with mu = 1."""


@pytest.mark.parametrize(("canaries", "guesses"), [(8, 8), (20, 8), (30, 20)])
def test_the_recursion_is_the_best_that_its_inequalities_allow(canaries: int, guesses: int) -> None:
    """And no mechanism that keeps all pairs does better: the programme over all of them, in right guesses."""
    curve = Curve("pairs", tuple(PAIRS))
    for right in range(guesses // 2, guesses + 1):
        found = tail_at_most(canaries, guesses, right, curve)
        relaxed = worst_by_inequalities(canaries, guesses, right, PAIRS)
        assert found == pytest.approx(relaxed, rel=2e-4)
        assert worst_by_counts(canaries, guesses, right, PAIRS) <= found + 1e-7


def test_more_right_guesses_are_never_likelier() -> None:
    curve = gaussian_curve(1.0)
    tails = [tail_at_most(100, 40, right, curve) for right in range(41)]
    assert tails == sorted(tails, reverse=True)
    assert tails[0] == 1.0 and tails[-1] < 0.05


@pytest.mark.parametrize("curve", [gaussian_curve(1.0), laplace_curve(2.0), dp_curve(1.0, 0.01)], ids=lambda c: c.name)
def test_most_found_and_least_alarms_undo_each_other(curve: Curve) -> None:
    for alarms in (0.001, 0.02, 0.3, 0.7):
        found = float(curve.most_found(np.array([alarms]))[0])
        assert found >= alarms
        assert curve.least_alarms(found) == pytest.approx(alarms, abs=1e-9) or found == 1.0


@pytest.mark.parametrize("mu", [0.3, 1.0, 3.0])
def test_the_gaussian_curve_errs_upwards_and_little(mu: float) -> None:
    alarms = np.geomspace(1e-6, 0.99, 200)
    exact = norm.cdf(norm.ppf(alarms) + mu)
    read = gaussian_curve(mu).most_found(alarms)
    assert (read >= exact - 1e-12).all()
    assert (read <= exact + 2e-3).all()


@pytest.mark.parametrize("epsilon", [0.1, 1.0, pytest.param(8.0, marks=pytest.mark.slow)])
def test_gaussian_epsilon_is_the_accountants(epsilon: float) -> None:
    mu = gaussian_mu(epsilon, 1e-5)
    assert gaussian_epsilon(mu, 1e-5) == pytest.approx(epsilon, abs=1e-6)
    assert accounting.epsilon(accounting.gaussian(1.0 / mu), 1e-5) == pytest.approx(epsilon, rel=2e-3)


def test_the_runs_own_curve_is_read_from_its_event() -> None:
    step = accounting.gaussian(2.0)
    own, exact = curve_of_event(accounting.self_composed(4, step)), gaussian_curve(1.0)
    alarms = np.geomspace(1e-4, 0.9, 50)
    assert own.most_found(alarms) == pytest.approx(exact.most_found(alarms), abs=3e-3)


@pytest.mark.parametrize("family", [GAUSSIAN, LAPLACE], ids=lambda f: f.name)
def test_f_dp_names_its_family_and_keeps_below_the_truth(family) -> None:
    """Of 40 runs each; the bound misses in at most 1 of 20, so 8 or more have a chance below 1e-3."""
    truth = 3.0
    scores_of = build_family("gaussian" if family is GAUSSIAN else "laplace", truth, 1e-5, 500)
    rng = np.random.default_rng(0)
    found = [f_dp(*scores_of.draw(rng, 500), 1e-5, 0.95, family) for _ in range(40)]
    assert all(family.name in bound.assumption for bound in found)
    assert sum(bound.epsilon > truth for bound in found) < 8
    assert np.mean([bound.epsilon for bound in found]) > 0.3 * truth


def honest_p_values(test, runs: int, name: str) -> list[float]:
    family = build_family(name, 4.0, 1e-5, 100)
    step = accounting.poisson_sampled(family.law.sampling_rate, accounting.gaussian(family.law.noise_multiplier))
    curve = curve_of_event(accounting.self_composed(family.law.steps, step)) if name == "subsampled" else None
    rng = np.random.default_rng(1)
    return [test(*family.draw(rng, 100), curve or gaussian_curve(gaussian_mu(4.0, 1e-5))).p_value for _ in range(runs)]


@pytest.mark.parametrize("name", ["gaussian", pytest.param("subsampled", marks=pytest.mark.slow)])
@pytest.mark.parametrize("test", [p_value, p_value_independent], ids=lambda t: t.__name__)
def test_300_honest_runs_are_rejected_at_no_more_than_the_level(test, name: str) -> None:
    """Also for the run's own curve with q < 1, which takes the accountant long.

    A test of exactly 5 % rejects 28 or more of 300 with probability 1.3e-3.
    """
    values = np.array(honest_p_values(test, 300, name))
    assert (values <= 0.05).sum() <= binom.isf(1.3e-3, 300, 0.05)
    assert ((values >= 0.0) & (values <= 1.0)).all()


@pytest.mark.parametrize("canaries", [300, 1000])
@pytest.mark.parametrize("epsilon", [1.0, 2.0, 4.0, 8.0])
def test_a_quarter_of_the_noise_is_noticed(epsilon: float, canaries: int) -> None:
    """20 runs, all rejected at 5 % by both tests."""
    mu = gaussian_mu(epsilon, 1e-5)
    curve, rng = gaussian_curve(mu), np.random.default_rng(2)
    for _ in range(20):
        included = rng.random(canaries) < 0.5
        scores = 4.0 * mu * included + rng.standard_normal(canaries)
        assert p_value(scores, included, curve).p_value < 0.05
        assert p_value_independent(scores, included, curve).p_value < (1e-6 if canaries == 1000 else 0.01)


def test_the_tail_above_a_rank_is_the_integral_over_the_beta_law() -> None:
    """The law of the rate of false alarms is cut into cells, each counted as its largest rate: never too small."""
    rng = np.random.default_rng(3)
    curve = gaussian_curve(1.0)
    included = np.arange(500) < 300
    scores = np.where(included, 1.3, 0.0) + rng.standard_normal(500)
    found = p_value_independent(scores, included, curve)
    k, count = found.details["false_alarms"], found.details["found"]
    loud, quiet = (300, 200) if found.details["finds"] == "members" else (200, 300)

    logit = np.linspace(-30.0, 5.0, 20_001)
    alarms = expit(logit)
    height = binom.sf(count - 1, loud, curve.most_found(alarms)) * beta.pdf(alarms, k + 1, quiet - k)
    exact = found.details["tried"] * np.trapezoid(height * alarms * (1.0 - alarms), logit)
    assert 1e-12 < exact < 0.05
    assert exact <= found.p_value * (1 + 1e-4)
    assert found.p_value <= 1.5 * exact


@pytest.mark.parametrize(
    "curve",
    [gaussian_curve(0.3), gaussian_curve(4.0), laplace_curve(20.0), dp_curve(0.0, 0.0), Curve("pairs", tuple(PAIRS))],
    ids=lambda c: c.name,
)
def test_least_alarms_is_the_largest_of_all_lines(curve: Curve) -> None:
    odds, deltas = np.exp([e for e, _ in curve.pairs]), np.array([d for _, d in curve.pairs])
    for found in [*np.linspace(0.0, 1.0, 101), 1e-9, 1e-5, 1 - 1e-5, 1 - 1e-9]:
        plain = max(0.0, ((found - deltas) / odds).max(), (1.0 - deltas - odds * (1.0 - found)).max())
        assert curve.least_alarms(float(found)) == pytest.approx(plain, rel=1e-9, abs=1e-12)


def test_bad_curves_are_refused() -> None:
    for pairs in ((), ((-1.0, 0.1),), ((1.0, 2.0),)):
        with pytest.raises(ValueError, match="pairs"):
            Curve("bad", pairs)
