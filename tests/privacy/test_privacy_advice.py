"""Advice rests on arithmetic that can be checked: the Gaussian bound, the estimate of noise, the bound on the loss."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dptrain.privacy import accounting
from dptrain.privacy.advice import (
    Question,
    Row,
    above_the_wall,
    best_buy,
    frontier,
    gaussian_mu,
    grid,
    likely_mu,
    likely_noise,
    priced,
    scaled_rate,
    telling,
    thinned,
)

QUESTION = Question(
    public_size=1000,
    num_parameters=650,
    epsilon=3.0,
    delta=1e-5,
    adjacency="zero_out",
    sensitivity_slack=1e-3,
    fewest_steps=10.0,
    whole=lambda event: event,
)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 1e-6), (4.0, 1e-5)])
def test_mu_is_that_of_the_exact_gaussian_accountant(epsilon: float, delta: float) -> None:
    told = accounting.epsilon(accounting.gaussian(1 / gaussian_mu(epsilon, delta)), delta)
    assert told == pytest.approx(epsilon, rel=2e-3)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 5), st.floats(1e-4, 1), st.integers(1, 10_000))
def test_the_estimate_of_noise_has_an_inverse(mu: float, rate: float, steps: int) -> None:
    sigma = likely_noise(mu, rate, steps)
    row = Row(batch=rate * QUESTION.public_size, steps=steps, noise_multiplier=sigma)
    assert likely_mu(row, QUESTION) == pytest.approx(mu, rel=1e-6)


@pytest.mark.parametrize(("batch", "steps"), [(100.0, 200), (1000.0, 30)])
def test_a_priced_row_keeps_its_epsilon_with_hardly_more_noise_than_it_needs(batch: float, steps: int) -> None:
    guess = likely_noise(gaussian_mu(3.0, 1e-5), batch / 1000, steps)
    row = priced(Row(batch=batch, steps=steps, noise_multiplier=guess), QUESTION)

    def price(sigma: float) -> float:
        step = accounting.poisson_sampled(row.rate(QUESTION), accounting.gaussian(sigma))
        return accounting.epsilon(accounting.self_composed(steps, step), 1e-5)

    assert row.epsilon is not None and price(row.noise_multiplier) <= row.epsilon <= 3.0
    assert price(row.noise_multiplier * 0.98) > 3.0


def test_pricing_does_not_need_a_good_guess() -> None:
    rows = [priced(Row(batch=100.0, steps=200, noise_multiplier=guess), QUESTION) for guess in (0.4, 20.0)]
    assert max(r.noise_multiplier for r in rows) <= 1.011 * min(r.noise_multiplier for r in rows)


def test_what_runs_beside_the_steps_is_paid_for() -> None:
    row = Row(batch=100.0, steps=200, noise_multiplier=1.5)
    looks = accounting.self_composed(5, accounting.gaussian(4.0))
    beside = replace(QUESTION, whole=lambda event: accounting.composed([event, looks]))
    assert priced(row, beside).noise_multiplier > 1.05 * priced(row, QUESTION).noise_multiplier


def test_everybody_in_every_step_keeps_the_whole_signal_and_small_draws_with_little_noise_do_not() -> None:
    mu = gaussian_mu(3.0, 1e-5)
    full, half, tiny = (
        Row(batch=b, steps=100, noise_multiplier=likely_noise(mu, b / 1000, 100)) for b in (1000.0, 500.0, 10.0)
    )
    assert full.kept(QUESTION) == pytest.approx(1.0)
    assert half.kept(QUESTION) > 0.9 and half.noise_multiplier > 2
    assert tiny.kept(QUESTION) < 0.35 and tiny.noise_multiplier < 1


def test_the_bound_is_the_one_of_noisy_descent() -> None:
    """By hand: D = 650, s = 1e-3, sigma = 2, B = 500 of 1,000, T = 100, kappa = 10."""
    row = Row(batch=500.0, steps=100, noise_multiplier=2.0)
    noise = math.sqrt(650 * (1.001 * 2 / 500) ** 2 / 100 + 0.5 / (500 * 100))
    assert row.bound(QUESTION) == pytest.approx(1 / math.sqrt(1000) + noise + 10 / 100)


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 10**6), st.integers(1, 10**7), st.floats(0.1, 10), st.floats(0, 1), st.integers(2, 12))
def test_the_recommended_row_is_the_cheapest_that_is_good_enough(
    size: int, parameters: int, mu: float, tolerance: float, most: int
) -> None:
    question = replace(QUESTION, public_size=size, num_parameters=parameters)
    rows = grid(question, [], [], mu)
    assert all(1 <= row.batch <= size for row in rows)
    lowest = min(row.bound(question) for row in rows)
    edge = frontier(rows, question, lambda row: row.gradients)
    chosen = best_buy(edge, question, lambda row: row.gradients, tolerance)
    assert chosen.bound(question) <= (1 + tolerance) * lowest * (1 + 1e-12)
    good = [row for row in rows if row.bound(question) <= (1 + tolerance) * lowest]
    assert chosen.gradients == min(row.gradients for row in good)
    told = telling(edge, chosen, question)
    assert chosen in told and all(any(t.bound(question) <= r.bound(question) / 0.99 for t in told) for r in edge)
    shown = thinned(told, chosen, most)
    assert len(shown) == min(most, len(told)) and chosen in shown and shown == [r for r in told if r in shown]


def test_rates_move_as_the_bound_says() -> None:
    def row(steps: int, sigma: float) -> Row:
        return Row(batch=1000.0, steps=steps, noise_multiplier=sigma)

    quiet = replace(QUESTION, num_parameters=1)
    assert scaled_rate(0.5, "sgd", row(400, 1e-6), row(100, 1e-6), quiet) == 0.5, "a shorter run: 1 / beta at most"
    assert scaled_rate(0.5, "sgd", row(100, 1e-6), row(400, 1e-6), quiet) == 0.25, (
        "a longer one: as if noise had set it"
    )
    loud = replace(QUESTION, num_parameters=10**9)
    assert scaled_rate(1.0, "sgd", row(100, 10.0), row(400, 20.0), loud) == 0.25, "all noise: paths of one length"
    assert scaled_rate(1.0, "adam", row(100, 10.0), row(400, 20.0), loud) == 0.5, "its steps have a size of their own"
    assert scaled_rate(1.0, "mine", row(100, 1.0), row(400, 2.0), QUESTION) is None


def test_below_the_wall_only_where_little_can_be_paid_for() -> None:
    mu, paid = gaussian_mu(3.0, 1e-5), 4000.0
    rows = [row for row in grid(QUESTION, [], [], mu) if row.gradients <= 50 * paid]
    above = above_the_wall(rows, QUESTION, 0.9)
    assert above and all(row.kept(QUESTION) >= 0.9 for row in above) and len(above) < len(rows)
    poor = [row for row in rows if row.gradients <= paid]
    assert above_the_wall(poor, QUESTION, 0.9) == poor, "what is above the wall has too few steps"
