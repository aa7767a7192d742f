"""Many runs composed: the privacy loss distribution of all their steps together, if all were planned beforehand.

Steps with the same parameters are one group, so a sweep over seeds costs what one run costs. Each group's distribution
is dp-accounting's own ("connect the dots", pessimistic); it is raised to its number of steps by FFT inside Chernoff
bounds, and groups are convolved two by two. The grid follows from what is composed, so that rounding stays under 1 %.
Sources: Koskela et al. 2020 (FFT accountant); Doroshenko et al. 2022 ("connect the dots"); Gopi et al. 2021, section 4
(windows for composed losses).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dptrain.errors import ConfigError
from dptrain.privacy import accounting
from dptrain.privacy.accounting import Event
from dptrain.privacy.privacy_filter import UNIT, Rule, step_price

if TYPE_CHECKING:
    from dp_accounting.pld.pld_pmf import DensePLDPmf

TAIL = 1e-15
"""Mass outside a group's window: counted as an infinite loss."""
ROUNDING = 0.006
"""Aim for the share of epsilon that rounding to the grid adds (measured: ``docs/results/ledger.md``)."""
_ORDERS = (2.0, 3.0, 5.0, 8.0, 16.0, 32.0)


def compose_epsilon(parts: Iterable[tuple[Event, int]], delta: float, interval: float | None = None) -> float:
    """An upper bound on epsilon of all parts together, at ``delta``.

    Guarantee: a mechanism that releases every step of every part, with lengths and parameters fixed beforehand, is
    (returned, delta)-DP for one unit.

    Args:
        parts: (event of one step, number of steps); a step is a Gaussian, on a Poisson sample or on everyone.
        delta: in (0, 1).
        interval: discretisation of the privacy loss; None chooses it.

    Raises:
        ConfigError: a step has no privacy loss distribution here, or delta is too small for the arithmetic.
    """
    groups = accounting.kinds_of_steps(parts)
    total = sum(groups.values())
    if not total:
        return 0.0
    reserve = accounting.ARITHMETIC * (total + len(groups))
    if delta < 100 * reserve:
        raise ConfigError("delta", delta, f"is too small for {total} steps", "it cannot be composed")
    if len(groups) == 1:
        ((rate, sigma),) = groups
        step = accounting.poisson_sampled(rate, accounting.gaussian(sigma))
        return accounting.epsilon(accounting.self_composed(total, step), delta, interval=interval or accounting.FINE)
    grid = interval or interval_of(groups, delta)
    found = [
        _convolved([_self_composed(_step(rate, sigma, grid)[way], count) for (rate, sigma), count in groups.items()])
        for way in (0, 1)
    ]
    return max(0.0, *(float(pmf.get_epsilon_for_delta(delta - reserve)) for pmf in found))


def interval_of(groups: dict[tuple[float, float], int], delta: float) -> float:
    """The widest cell h that keeps to ``ROUNDING``: rounding adds at most about ``0.4 h^2 steps`` (measured)."""
    totals = [0.0] * len(_ORDERS)
    for (rate, sigma), count in groups.items():
        prices = step_price(accounting.poisson_sampled(rate, accounting.gaussian(sigma)), _ORDERS)
        totals = [total + count * price * UNIT for total, price in zip(totals, prices, strict=True)]
    rough = min(total + Rule(order, delta).offset for order, total in zip(_ORDERS, totals, strict=True))
    cell = math.sqrt(ROUNDING * max(rough, 1e-3) / (0.4 * sum(groups.values())))
    return max(1e-6, min(2e-3, cell) / (4 if len(groups) <= 10 else 1))


@lru_cache(maxsize=1024)
def _step(rate: float, sigma: float, interval: float) -> tuple[DensePLDPmf, DensePLDPmf]:
    """Losses of one step when the unit is taken out, and when it is put in."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    made: Any = pld.from_gaussian_mechanism(
        sigma,
        value_discretization_interval=interval,
        sampling_prob=rate,
        neighboring_relation=accounting._relation("zero_out"),
    )
    return made._pmf_remove.to_dense_pmf(), made._pmf_add.to_dense_pmf()


def _self_composed(pmf: DensePLDPmf, count: int) -> DensePLDPmf:
    """``count`` independent losses added up: dp-accounting's own method, with fewer Chernoff orders.

    Mass outside the window wraps around into it; as much is added to the infinite loss, so the sum is never too low.
    """
    import numpy as np
    from dp_accounting.pld.pld_pmf import DensePLDPmf
    from scipy import fft

    probabilities = np.asarray(pmf._probs)
    size = len(probabilities)
    places = np.arange(size) / max(size - 1, 1)
    low, high = 0, (size - 1) * count
    for scale in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0):
        for sign in (1.0, -1.0):
            order = sign * scale
            peak = max(order, 0.0)
            log_moment = peak + math.log(float(np.dot(probabilities, np.exp(order * places - peak))))
            bound = (count * log_moment + math.log(2 / TAIL)) / order * max(size - 1, 1)
            low, high = (low, min(high, math.ceil(bound))) if sign > 0 else (max(low, math.floor(bound)), high)
    length: Any = fft.next_fast_len(max(high - low + 1, size), real=True)
    spectrum: Any = fft.rfft(probabilities, length)
    wrapped: Any = fft.irfft(spectrum**count, length)
    inside = np.roll(wrapped, -(low % length))[: high - low + 1]
    infinite = TAIL - math.expm1(count * math.log1p(-pmf._infinity_mass))
    return DensePLDPmf(
        pmf._discretization, pmf._lower_loss * count + low, np.maximum(inside, 0.0), infinite, pmf._pessimistic_estimate
    )


def _convolved(made: list[DensePLDPmf]) -> DensePLDPmf:
    while len(made) > 1:
        made.sort(key=lambda pmf: pmf.size)
        pairs = zip(made[::2], made[1::2], strict=False)
        made = [_added(one, other) for one, other in pairs] + made[len(made) - len(made) % 2 :]
    return made[0]


def _added(one: DensePLDPmf, other: DensePLDPmf) -> DensePLDPmf:
    """The sum of two losses; tails are cut pessimistically, the upper one to infinity, the lower one up to the cut."""
    import numpy as np
    from dp_accounting.pld.pld_pmf import DensePLDPmf
    from scipy import signal

    probabilities = np.maximum(signal.fftconvolve(one._probs, other._probs), 0.0)
    below = np.cumsum(probabilities)
    above = np.cumsum(probabilities[::-1])[::-1]
    first = int(np.searchsorted(below, TAIL, side="right"))
    last = len(above) - int(np.searchsorted(above[::-1], TAIL, side="right"))  # the first place that is cut off
    kept = probabilities[first:last].copy()
    kept[0] += below[first - 1] if first else 0.0
    cut = above[last] if last < len(above) else 0.0
    infinite = one._infinity_mass + other._infinity_mass - one._infinity_mass * other._infinity_mass + cut
    return DensePLDPmf(one._discretization, one._lower_loss + other._lower_loss + first, kept, float(infinite), True)
