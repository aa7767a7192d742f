"""The filter against its proof: exact adversaries on small mechanisms, prices against numerical integration."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dptrain.errors import ConfigError
from dptrain.privacy import accounting
from dptrain.privacy.privacy_filter import (
    LARGEST,
    UNIT,
    Rule,
    declare_rules,
    fits,
    rules_from,
    step_price,
    steps_of,
    value,
)


def response_price(epsilon: float, order: float) -> int:
    """Renyi divergence of randomised response, in UNIT, rounded up (closed form: two outcomes)."""
    p = math.exp(epsilon) / (1 + math.exp(epsilon))
    total = p**order * (1 - p) ** (1 - order) + (1 - p) ** order * p ** (1 - order)
    return math.ceil(math.log(total) / (order - 1) / UNIT)


class Adversary:
    """The best one there is: at every node of the tree of outcomes it asks what pays most, or stops.

    Each question is randomised response with one of several epsilons; what is maximised is the exact hockey-stick sum
    ``sum over transcripts of max(0, P - exp(epsilon) Q)``, which (epsilon, delta)-DP bounds by delta.
    """

    def __init__(
        self, rules: tuple[Rule, ...], limit: float, questions: tuple[float, ...], weight: float = 1.0
    ) -> None:
        self.rules, self.limit = rules, limit
        self.prices = {q: [math.ceil(weight * response_price(q, rule.order)) for rule in rules] for q in questions}
        self.nodes = 0

    def best(
        self, claimed: float | None, p: float = 1.0, q: float = 1.0, totals: tuple[int, ...] | None = None
    ) -> float:
        """Largest sum from here on; ``claimed`` None: measured against the value at which the account then stands."""
        self.nodes += 1
        spent = totals or (0,) * len(self.rules)
        epsilon = value(self.rules, spent) if claimed is None else claimed
        found = max(0.0, p - math.exp(epsilon) * q)
        for question, prices in self.prices.items():
            after = tuple(total + price for total, price in zip(spent, prices, strict=True))
            if fits(self.rules, after, self.limit):
                yes = math.exp(question) / (1 + math.exp(question))
                answers = ((yes, 1 - yes), (1 - yes, yes))
                found = max(found, sum(self.best(claimed, p * a, q * b, after) for a, b in answers))
        return found


CASES = [
    (2.0, 0.05, (0.6, 1.0)),
    (1.5, 0.1, (0.5,)),
    (3.0, 0.02, (1.0, 1.4)),
    (2.5, 0.3, (0.9, 1.7)),
]


@pytest.mark.parametrize(("limit", "delta", "questions"), CASES)
def test_no_adaptive_adversary_gets_past_the_limit(limit: float, delta: float, questions: tuple[float, ...]) -> None:
    adversary = Adversary(declare_rules(limit, delta), limit, questions)
    worst = adversary.best(limit)
    assert adversary.nodes > 10, "the filter must leave the adversary something to do"
    assert worst <= delta


@pytest.mark.parametrize(("limit", "delta", "questions"), CASES)
def test_the_value_at_which_an_account_stands_is_a_claim_of_its_own(
    limit: float, delta: float, questions: tuple[float, ...]
) -> None:
    """Ex post: measured against the value of the path that was really taken, wherever the adversary stops."""
    assert Adversary(declare_rules(limit, delta), limit, questions).best(None) <= delta


def test_the_adversary_would_notice_a_filter_that_charges_too_little() -> None:
    limit, delta, questions = 1.0, 0.02, (0.6,)
    honest = Adversary(declare_rules(limit, delta), limit, questions)
    lax = Adversary(declare_rules(limit, delta), limit, questions, weight=0.2)
    assert honest.best(limit) <= delta < lax.best(limit)


def test_shares_of_delta_add_up() -> None:
    for epsilon, delta in [(0.1, 1e-8), (1, 1e-5), (8, 1e-6), (1000, 0.5)]:
        rules = declare_rules(epsilon, delta)
        assert 0.99 * delta < sum(rule.delta for rule in rules) < delta
        assert rules_from([rule.to_json() for rule in rules]) == rules
    for epsilon, delta in [(0, 1e-5), (-1, 1e-5), (1001, 1e-5), (math.nan, 1e-5), (1, 0), (1, 1), (1, math.nan)]:
        with pytest.raises(ConfigError):
            declare_rules(epsilon, delta)


@pytest.mark.parametrize(("rate", "sigma"), [(0.01, 1.2), (0.1, 0.8), (0.5, 2.0), (1.0, 3.0), (1e-4, 0.6)])
def test_prices_are_upper_bounds_on_the_divergence(rate: float, sigma: float) -> None:
    """Both directions by numerical integration of the densities: N(0, s) and (1-q) N(0, s) + q N(1, s)."""
    import mpmath

    def density(x: Any, centre: float) -> Any:
        return mpmath.exp(-((x - centre) ** 2) / (2 * sigma**2)) / (sigma * mpmath.sqrt(2 * mpmath.pi))

    orders = (1.5, 2.0, 4.27, 16.0)
    step = accounting.poisson_sampled(rate, accounting.gaussian(sigma))
    for order, price in zip(orders, step_price(step, orders), strict=True):
        low, high = -30 * sigma, (order + 30) * max(sigma, 1.0) + order
        places = [low, -4 * sigma, 0, 0.5, 1, order / 2, order, order + 4 * sigma, high]

        def moment(x: Any, order: float = order, forth: bool = True) -> Any:
            base = density(x, 0)
            ratio = (1 - rate) + rate * mpmath.exp((2 * x - 1) / (2 * sigma**2))
            return base * ratio ** (order if forth else 1 - order)

        places = sorted({*places})
        with mpmath.workdps(30):
            there = mpmath.log(mpmath.quad(moment, places)) / (order - 1)
            back = mpmath.log(mpmath.quad(lambda x, m=moment: m(x, forth=False), places)) / (order - 1)
        exact = float(max(there, back))
        assert price * UNIT >= exact
        loose = {1.5: 0.7, 4.27: 0.1}.get(order, 1e-6)  # between whole orders a chord may stand in for the curve
        assert price * UNIT <= exact * (1 + loose) + 3e-12


def test_prices_of_many_steps_bound_the_composed_distribution() -> None:
    """The filter is looser than the distribution of fixed steps, never tighter."""
    for rate, sigma, steps in [(0.01, 1.0, 500), (0.2, 3.0, 100), (1.0, 8.0, 20)]:
        event = accounting.self_composed(steps, accounting.poisson_sampled(rate, accounting.gaussian(sigma)))
        rules = declare_rules(8, 1e-5, typical=event)
        price = step_price(event["event"], [rule.order for rule in rules])
        stands = value(rules, [steps * one for one in price])
        exact = accounting.epsilon(event, 1e-5)
        assert exact < stands < 1.6 * exact + 0.5


def test_a_typical_run_chooses_a_better_order() -> None:
    event = accounting.self_composed(1, accounting.poisson_sampled(0.001, accounting.gaussian(0.6)))

    def capacity(rules: tuple[Rule, ...]) -> int:
        (*prices,) = step_price(event["event"], [rule.order for rule in rules])
        return max(int((8 - rule.offset) / UNIT) // price for rule, price in zip(rules, prices, strict=True))

    assert capacity(declare_rules(8, 1e-5, typical=event)) > 1.2 * capacity(declare_rules(8, 1e-5))


def test_what_cannot_be_priced_is_refused_or_never_fits() -> None:
    with pytest.raises(ConfigError, match="can be priced"):
        steps_of({"type": "laplace"})
    (price,) = step_price(accounting.gaussian(1e-9), [2.0])
    assert price == LARGEST
    rules = declare_rules(1000, 0.5)
    assert not fits(rules, [LARGEST] * len(rules), 1000)


@settings(max_examples=200)
@given(st.lists(st.integers(0, 10**13), min_size=17, max_size=17), st.floats(0.1, 100), st.floats(1e-12, 0.1))
def test_the_value_rises_with_every_step(totals: list[int], epsilon: float, delta: float) -> None:
    rules = declare_rules(epsilon, delta)
    totals = totals[: len(rules)]
    more = [total + 1 + total // 3 for total in totals]
    assert 0.0 <= value(rules, totals) <= value(rules, more)
    assert value(rules, [0] * len(rules)) == 0.0
