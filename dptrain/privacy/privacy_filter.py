"""The rule that decides whether an account can bear one more run: a fully adaptive Renyi filter over fixed orders.

An account declares, before anything is spent, a limit (epsilon, delta) and rules: orders ``a_k > 1``, each with a share
``d_k`` of delta, the shares adding up to less than delta. With ``R_k`` the sum, over the steps executed so far, of the
step's Renyi divergence of order ``a_k``, the account stands at

    epsilon(z) = min_k [ R_k + log(1 - 1/a_k) - log(d_k a_k) / (a_k - 1) ]

and a run is admitted if that value, with everything open counted as if it were executed whole, stays within the limit.

Guarantee: let P and Q be the laws of everything released from the account for two neighbouring data sets, whoever
chose runs, parameters, order, concurrency and moments of stopping, by looking at whatever was released before. For
every event S, ``P(S) <= E_Q[exp(epsilon(Z)); S] + sum_k d_k``, Z being the whole transcript. So the account is (limit
epsilon, delta)-DP as long as the ledger admits nothing beyond its limit, and the value at which an account stands is a
claim of its own, whenever it is read. The proof is in docs/ledger.md.
Sources: Feldman & Zrnic 2021, Theorem 4.3, and Lecuyer 2021 (Renyi filters: one order, a fixed bound); Canonne, Kamath
& Steinke 2020, Proposition 12 (from Renyi divergence to epsilon and delta); Mironov, Talwar & Zhang 2019 (divergence of
the sampled Gaussian). Several orders at once, and the value as a claim, are proved on that page.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dptrain.errors import ConfigError
from dptrain.privacy.accounting import Event, to_dp_event
from dptrain.signing import canonical

UNIT = 1e-12
"""Renyi divergences are kept as whole numbers of this, rounded up: sums are exact, in any order, and refunds too."""
LARGEST = 9 * 10**15
"""A divergence of 9,000 a step or more is kept as this; no rule can admit it (limits end at 1,000)."""
LARGEST_EPSILON = 1000.0
MAIN_SHARE = 0.8
"""Share of delta of the order that suits the limit; the others share the rest."""
OTHERS = (1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 11.0, 16.0, 24.0, 32.0, 48.0, 64.0, 128.0, 256.0)
NOISE_SHARE = 1e-6
"""Share of delta left out of the rules for the noise sampler's distance from an ideal Gaussian: see docs/noise.md."""
_FINE_ORDERS = tuple(1 + x / 10 for x in range(1, 100)) + tuple(range(11, 64)) + (128, 256, 512)


@dataclass(frozen=True)
class Rule:
    """One order of the filter and its share of delta."""

    order: float
    delta: float

    @property
    def offset(self) -> float:
        """Epsilon of this rule at divergence zero (Canonne, Kamath & Steinke 2020, Proposition 12)."""
        return math.log1p(-1 / self.order) - (math.log(self.delta) + math.log(self.order)) / (self.order - 1)

    def to_json(self) -> dict[str, float]:
        """As it stands in the ledger."""
        return {"order": self.order, "delta": self.delta}


def declare_rules(epsilon: float, delta: float, typical: Event | None = None) -> tuple[Rule, ...]:
    """The rules of a new account.

    Args:
        epsilon: its limit, in (0, 1000].
        delta: its limit, in (0, 1).
        typical: a public guess at the steps to come: the main order is then the one that fits most of them under the
            limit. None: the order that suits Gaussian noise, ``1 + sqrt(log(1/delta) / rho)`` with rho the zCDP that
            spends the limit (Bun & Steinke 2016, Proposition 1.3). A poor guess costs budget, never the guarantee.

    Raises:
        ConfigError: a limit is out of range.
    """
    check_limit(epsilon, delta)
    usable = delta * (1.0 - NOISE_SHARE)
    main = _gaussian_order(epsilon, usable) if typical is None else _order_for(typical, epsilon, usable)
    share = (1.0 - MAIN_SHARE) * usable / len(OTHERS) * (1.0 - 1e-9)
    return (Rule(main, MAIN_SHARE * usable), *(Rule(order, share) for order in OTHERS if order != main))


def check_limit(epsilon: float, delta: float) -> None:
    """Refuses limits out of range."""
    if not (math.isfinite(epsilon) and 0 < epsilon <= LARGEST_EPSILON):
        raise ConfigError("epsilon", epsilon, f"must be in (0, {LARGEST_EPSILON:g}]", "choose a limit in that range")
    if not (math.isfinite(delta) and 1e-100 < delta < 1):
        raise ConfigError("delta", delta, "must be in (0, 1)", "choose a limit below 1 / number of units")


def _gaussian_order(epsilon: float, delta: float) -> float:
    log_inverse = math.log(1 / delta)
    root = math.sqrt(log_inverse + epsilon) - math.sqrt(log_inverse)
    return round(min(1024.0, max(1.05, 1 + math.sqrt(log_inverse) / root)), 2)


def _order_for(typical: Event, epsilon: float, delta: float) -> float:
    _, step = steps_of(typical)
    prices = step_price(step, _FINE_ORDERS)
    room = [(epsilon - Rule(order, MAIN_SHARE * delta).offset) / UNIT for order in _FINE_ORDERS]
    best = max(range(len(_FINE_ORDERS)), key=lambda k: room[k] / max(prices[k], 1))
    return float(_FINE_ORDERS[best]) if room[best] > 0 else _gaussian_order(epsilon, delta)


def steps_of(event: Event) -> tuple[int, Event]:
    """(planned steps, event of one step). Only a repetition has steps; any other event is one step, whole.

    Raises:
        ConfigError: the event is outside the closed schema.
    """
    to_dp_event(event)
    if event["type"] == "self_composed":
        return int(event["count"]), event["event"]
    return 1, event


def step_price(step: Event, orders: Sequence[float]) -> tuple[int, ...]:
    """Renyi divergence of one step at each order, in ``UNIT``, rounded up.

    Guarantee: for neighbouring data (one unit's contribution replaced by nothing, or one unit added or removed) the
    divergence of the step's outputs, in either direction and whatever was released before, is at most this.
    The padding of 1e-9 and 1e-13 pays for the rounding of the series that dp-accounting adds up.

    Raises:
        ConfigError: the event has no price in Renyi divergence.
    """
    return _price(canonical(step).decode(), tuple(float(order) for order in orders))


@lru_cache(maxsize=4096)
def _price(text: str, orders: tuple[float, ...]) -> tuple[int, ...]:
    event = json.loads(text)
    whole = {float(neighbour) for order in orders for neighbour in (math.floor(order), math.ceil(order))}
    grid = {*orders, *whole} - {1.0}
    if event["type"] not in ("gaussian", "poisson_sampled"):
        grid |= {float(order) for order in _FINE_ORDERS}  # the price of a selection at one order looks at the others
    found = _divergences(event, sorted(grid))
    return tuple(_rounded(min(found[order], _between(found, order))) for order in orders)


def _divergences(event: Event, orders: list[float]) -> dict[float, float]:
    import dp_accounting as dp
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(orders=orders, neighboring_relation=dp.NeighboringRelation.REPLACE_SPECIAL)
    log = logging.getLogger("absl")
    was, log.disabled = log.disabled, True  # a series that does not converge is infinite here, and that is enough said
    try:
        accountant.compose(to_dp_event(event))
    except (dp.UnsupportedEventError, NotImplementedError, ValueError, ArithmeticError) as error:
        shown = canonical(event).decode()[:80]
        raise ConfigError("event", shown, "has no price in Renyi divergence", "use the plan's own event") from error
    finally:
        log.disabled = was
    values = (float(x) for x in accountant._rdp)
    return {order: math.inf if math.isnan(x) else x for order, x in zip(orders, values, strict=True)}


def _between(found: dict[float, float], order: float) -> float:
    """A bound from the whole orders on either side: (a - 1) times the divergence is convex in a, and 0 at a = 1
    (the logarithm of a moment is convex in its exponent, by Hoelder). dp-accounting's series may not converge there."""
    low, high = math.floor(order), math.ceil(order)
    if low == high:
        return found[order]
    below = (low - 1) * found[float(low)] if low > 1 else 0.0
    return ((high - order) * below + (order - low) * (high - 1) * found[float(high)]) / (order - 1)


def _rounded(divergence: float) -> int:
    if not divergence < LARGEST * UNIT:  # infinite or NaN: the series did not converge at this order
        return LARGEST
    return min(LARGEST, math.ceil((max(divergence, 0.0) * (1 + 1e-9) + 1e-13) / UNIT))


def value(rules: Sequence[Rule], totals: Sequence[int]) -> float:
    """Epsilon at which an account stands; 0 where nothing was executed.

    Args:
        rules: the account's, fixed when it was made.
        totals: sum of the prices of the steps counted, one per rule, in ``UNIT``.
    """
    if not any(totals):
        return 0.0
    return max(0.0, min(total * UNIT + rule.offset for rule, total in zip(rules, totals, strict=True)))


def fits(rules: Sequence[Rule], totals: Sequence[int], limit: float) -> bool:
    """Whether an account with these totals is within its limit (a hair's breadth is kept for rounding)."""
    return value(rules, totals) <= limit * (1 - 1e-12)


def least_limit(event: Event, epsilon: float, delta: float) -> float:
    """The least limit, of ``epsilon`` and above, of an account made for this event that bears it once.

    It is ``epsilon`` where that is enough, infinite where no limit is.
    """
    count, step = steps_of(event)

    def weight(limit: float) -> float:
        rules = declare_rules(limit, delta, event)
        return value(rules, [count * price for price in step_price(step, [rule.order for rule in rules])])

    if weight(epsilon) <= epsilon * (1 - 1e-9):
        return epsilon
    low, high = (
        epsilon,
        max(1.01 * epsilon, weight(LARGEST_EPSILON)),
    )  # made for a larger limit, an account weighs the same run anew
    while high <= LARGEST_EPSILON and weight(high) > high * (1 - 1e-9):
        low, high = high, 1.5 * high
    if high > LARGEST_EPSILON:
        return math.inf
    while high > 1.002 * low:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if weight(middle) <= middle * (1 - 1e-9) else (middle, high)
    return high


def rules_from(rows: Sequence[dict[str, Any]]) -> tuple[Rule, ...]:
    """Rules as the ledger holds them. Raises ValueError: an order or a share that no rule has."""
    rules = tuple(Rule(float(row["order"]), float(row["delta"])) for row in rows)
    if not rules or not all(1.0 < rule.order < math.inf and 0.0 < rule.delta < 1.0 for rule in rules):
        raise ValueError("an order or a share of delta is out of range")
    return rules
