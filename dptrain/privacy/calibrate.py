"""Solving for the third of (epsilon, noise multiplier, steps) from the other two.

Searches run on a coarse grid of privacy losses; what they return has been checked on the fine one, so that
the epsilon of the result never exceeds the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dptrain.errors import ConfigError
from dptrain.privacy import accounting
from dptrain.privacy.accounting import Event

MAX_NOISE_MULTIPLIER = 1e4
MAX_STEPS = 10_000_000


def _steps_alone(event: Event) -> Event:
    return event


def noise_multiplier_for(
    epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    adjacency: str,
    whole: Callable[[Event], Event] = _steps_alone,
) -> float:
    """The smallest noise multiplier, to four significant digits rounded up, that meets a target epsilon.

    ``whole`` makes the event of the run out of the event of its steps (noisy evaluations beside them, a selection).

    Guarantee: ``epsilon_of(result) <= epsilon`` at the fine discretisation.

    Raises:
        ConfigError: no noise multiplier up to 10,000 meets the target.
    """

    from scipy.optimize import brentq

    def price(sigma: float, interval: float) -> float:
        step = accounting.poisson_sampled(sampling_rate, accounting.gaussian(sigma))
        return accounting.epsilon(whole(accounting.self_composed(steps, step)), delta, adjacency, interval)

    coarse = min(accounting.COARSE, epsilon / 1000)
    low, high = _bracket(lambda sigma: price(sigma, coarse) <= epsilon)
    if high > MAX_NOISE_MULTIPLIER:
        raise ConfigError(
            "privacy.epsilon",
            epsilon,
            f"cannot be met in {steps} steps with any noise multiplier up to {MAX_NOISE_MULTIPLIER:g}",
            "raise epsilon or delta, or take fewer steps (or trials, or noisy looks)",
        )
    # Log epsilon is close to linear in log sigma, so few prices are needed.

    def excess(log_sigma: float) -> float:
        return math.log(price(math.exp(log_sigma), coarse) / epsilon)

    root: Any = brentq(excess, math.log(low), math.log(high), xtol=1e-4)
    low = math.exp(root - 2e-4)
    return _confirm(lambda sigma: price(sigma, accounting.FINE) <= epsilon, low)


def _bracket(meets: Callable[[float], bool]) -> tuple[float, float]:
    """Two noise multipliers, close together, of which only the larger meets the target.

    Walks from 1 in small strides: distributions for a far too small multiplier are very long.
    """
    sigma, stride = 1.0, 1.5
    if meets(sigma):
        while meets(sigma / stride):
            sigma /= stride
        return sigma / stride, sigma
    while not meets(sigma * stride):
        sigma *= stride
        if sigma > MAX_NOISE_MULTIPLIER:
            break
    return sigma, sigma * stride


def _confirm(meets: Callable[[float], bool], start: float) -> float:
    """Rounds up to four digits, then steps up until the fine accountant agrees."""
    unit = 10.0 ** (math.floor(math.log10(start)) - 3)
    ticks = math.ceil(start / unit)
    while not meets(ticks * unit):
        ticks += 1
    return float(f"{ticks * unit:.10g}")


def steps_for(
    epsilon: float,
    delta: float,
    sampling_rate: float,
    noise_multiplier: float,
    adjacency: str,
    whole: Callable[[Event], Event] = _steps_alone,
) -> int:
    """The largest number of steps whose epsilon stays within the target.

    Raises:
        ConfigError: not even one step fits.
    """
    step = accounting.poisson_sampled(sampling_rate, accounting.gaussian(noise_multiplier))

    def fits(count: int, interval: float = accounting.FINE) -> bool:
        return accounting.epsilon(whole(accounting.self_composed(count, step)), delta, adjacency, interval) <= epsilon

    if not fits(1):
        raise ConfigError(
            "privacy.epsilon",
            epsilon,
            f"does not admit one step at noise_multiplier={noise_multiplier:g} and sampling rate {sampling_rate:.4g}",
            "raise epsilon or the noise multiplier, or lower privacy.expected_batch_size",
        )
    low, high = 1, 2
    while fits(high, min(accounting.COARSE, epsilon / 1000)):
        low, high = high, high * 2
        if high > MAX_STEPS:
            raise ConfigError(
                "privacy.epsilon",
                epsilon,
                f"admits more than {MAX_STEPS} steps",
                "set privacy.steps and leave epsilon null",
            )
    if not fits(low):
        low = 1
    high *= 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
