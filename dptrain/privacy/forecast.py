"""What still fits: how many more runs of a size an account admits, and the largest single one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dptrain.errors import ConfigError
from dptrain.privacy import accounting
from dptrain.privacy.accounting import Event
from dptrain.privacy.ledger import Ledger
from dptrain.privacy.ledger_state import Account, State
from dptrain.privacy.privacy_filter import fits, step_price

SIZES = (1.0, 2.0)
"""Runs asked about where no size is named."""
MOST = 100_000


def forecast(
    ledger: Ledger, account_name: str, sizes: list[float], sampling_rate: float | None, steps: int | None
) -> dict[str, Any]:
    """Plain data: for each size, how many runs fit; and the epsilon of the largest single run that does.

    A size is the run's own planned epsilon at the account's delta; its noise is solved for, given its sampling rate
    and length. Two runs of one size weigh differently in the filter when these differ, so both are named.

    Args:
        sizes: epsilons; empty for 1 and 2.
        sampling_rate, steps: shape of the runs; None for that of the newest run, else 0.01 and 1,000.
    """
    account = ledger.account(account_name)
    found_rate, found_steps = _newest_shape(ledger.state, account)
    rate, length = sampling_rate or found_rate, steps or found_steps

    def admits(sigma: float, runs: int) -> bool:
        price = step_price(accounting.poisson_sampled(rate, accounting.gaussian(sigma)), orders)
        return fits(account.rules, account.with_more(price, length * runs), account.epsilon)

    orders = [rule.order for rule in account.rules]
    rows = []
    for size in sizes or SIZES:
        sigma = _noise_for(size, account.delta, rate, length)
        rows.append({"epsilon": size, "noise_multiplier": sigma, "runs": _most(lambda n, s=sigma: admits(s, n))})
    return {
        "account": account.name,
        "limit": {"epsilon": account.epsilon, "delta": account.delta},
        "spent": account.value,
        "frozen": account.frozen is not None,
        "shape": {"sampling_rate": rate, "steps": length},
        "fits": rows,
        "largest": _largest(lambda sigma: admits(sigma, 1), rate, length, account.delta),
    }


def typical_run(limit: float, delta: float, sampling_rate: float | None, steps: int | None) -> Event | None:
    """A run of that shape that takes a quarter of the limit: what a new account's filter is best made for.

    None where the shape is not known; the filter then suits Gaussian noise, and fits fewer runs of little noise.
    """
    if sampling_rate is None or steps is None:
        return None
    sigma = _noise_for(limit / 4, delta, sampling_rate, steps)
    return accounting.self_composed(steps, accounting.poisson_sampled(sampling_rate, accounting.gaussian(sigma)))


def _newest_shape(state: State, account: Account) -> tuple[float, int]:
    for number in reversed(account.entries):
        match state.entries[number].event:
            case {"type": "self_composed", "count": steps, "event": {"type": "poisson_sampled", "sampling_rate": rate}}:
                return float(rate), int(steps)
    return 0.01, 1000


def _most(admitted: Callable[[int], bool]) -> int:
    """The largest number that is admitted, at most 100,000: what fits n times fits fewer times as well."""
    if not admitted(1):
        return 0
    low, high = 1, 2
    while high <= MOST and admitted(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if admitted(middle) else (low, middle)
    return min(low, MOST)


def _least(good: Callable[[float], bool], precision: float) -> float | None:
    """The least noise multiplier in [0.3, 1000] that is good, by halving on a logarithmic scale; None where none is."""
    low, high = math.log(0.3), math.log(1000.0)
    if not good(math.exp(high)):
        return None
    while high - low > precision:
        middle = (low + high) / 2
        low, high = (low, middle) if good(math.exp(middle)) else (middle, high)
    return math.exp(high)


def _price(sigma: float, delta: float, rate: float, steps: int) -> float:
    event = accounting.self_composed(steps, accounting.poisson_sampled(rate, accounting.gaussian(sigma)))
    return accounting.epsilon(event, delta, interval=accounting.COARSE)


def _noise_for(size: float, delta: float, rate: float, steps: int) -> float:
    """Noise of a run of that epsilon, to 0.3 %: a forecast needs no more."""
    sigma = _least(lambda one: _price(one, delta, rate, steps) <= size, 0.003)
    if sigma is None:
        raise ConfigError("epsilon", size, f"no run of {steps} steps is that small", "ask about a larger one")
    return sigma


def _largest(admitted: Callable[[float], bool], rate: float, steps: int, delta: float) -> float | None:
    """Epsilon of the run with the least noise (to 1 %) that is admitted; None where a multiplier of 1,000 is not."""
    sigma = _least(admitted, 0.01)
    return None if sigma is None else _price(sigma, delta, rate, steps)
