"""The exact law of how often dummies repeat under Poisson sampling: what a shuffled order does not follow."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

LARGEST = 1 << 17
"""Longest table of the exact law; beyond, three moments are matched."""


def total_p(total: np.ndarray, dummies: int, steps: int, rate: float) -> np.ndarray:
    """Two-sided p of the number of inclusions, which is Binomial(dummies x steps, rate)."""
    from scipy.special import bdtr, bdtrc

    trials = dummies * steps
    if rate >= 1.0:
        return np.where(total == trials, 1.0, 0.0)
    low = bdtr(total, trials, rate)
    high = np.where(total > 0, bdtrc(np.maximum(total - 1, 0), trials, rate), 1.0)
    return np.minimum(1.0, 2.0 * np.minimum(low, high))


def repeats_p(included: np.ndarray, steps: int, rate: float) -> np.ndarray:
    """Two-sided p of the number of pairs of steps that hold the same dummy.

    Each dummy's number of inclusions is Binomial(steps, rate), independently; the pairs are n (n - 1) / 2 summed over
    dummies. A shuffled order spreads them too evenly, a draw used twice makes too many.

    Args:
        included: (R, m) inclusions of each dummy.
        steps: that they were counted over.
        rate: q.
    """
    pairs = (included * (included - 1) // 2).sum(1)
    if rate >= 1.0:
        return np.where((included == steps).all(1), 1.0, 0.0)
    first, cumulative = _law(included.shape[1], steps, rate)
    if cumulative is None:
        return _by_moments(pairs, included.shape[1], steps, rate)
    place = pairs - first
    inside = np.clip(place, 0, len(cumulative) - 1)
    low = np.where(place < 0, 0.0, np.where(place >= len(cumulative), 1.0, cumulative[inside]))
    below = np.where(inside > 0, cumulative[inside - 1], 0.0)
    high = np.where(place < 0, 1.0, np.where(place >= len(cumulative), 0.0, 1.0 - below))
    return np.minimum(1.0, 2.0 * np.minimum(low, high))


def _one(steps: int, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Values n (n - 1) / 2 and their probabilities for one dummy; what is left out has less than 1e-18."""
    from scipy.special import gammaln, xlog1py, xlogy

    spread = 12.0 * (steps * rate * (1.0 - rate)) ** 0.5 + 40.0
    n = np.arange(max(0, int(steps * rate - spread)), min(steps, int(steps * rate + spread)) + 1)
    logs = gammaln(steps + 1) - gammaln(n + 1) - gammaln(steps - n + 1) + xlogy(n, rate) + xlog1py(steps - n, -rate)
    chance = np.exp(logs)
    return n * (n - 1) // 2, chance / chance.sum()


@lru_cache(maxsize=64)
def _law(dummies: int, steps: int, rate: float) -> tuple[int, np.ndarray | None]:
    """The least value tabled, and the cumulative law from there: an m-fold convolution, by Fourier transform.

    The transform is cyclic; its length covers 16 standard deviations on both sides, and each dummy's own values, so
    that what comes round is below the rounding of float64.
    """
    values, chance = _one(steps, rate)
    mean = float(values @ chance)
    deviation = float(((values - mean) ** 2 @ chance) ** 0.5)
    length = 1 << int(np.ceil(np.log2(max(64.0, 32.0 * deviation * dummies**0.5 + values[-1] - values[0]))))
    if length > LARGEST:
        return 0, None
    first = max(0, int(dummies * mean) - length // 2)
    table = np.bincount(values % length, weights=chance, minlength=length)
    whole = np.fft.irfft(np.fft.rfft(table) ** dummies, length)
    return first, np.cumsum(np.clip(np.roll(whole, -(first % length)), 0.0, None))


def _by_moments(pairs: np.ndarray, dummies: int, steps: int, rate: float) -> np.ndarray:
    """A shifted gamma law with the mean, variance and skewness of the sum; for long runs, where all are near normal."""
    from scipy.special import gammainc, gammaincc

    values, chance = _one(steps, rate)
    mean = values @ chance
    second, third = (((values - mean) ** power) @ chance for power in (2, 3))
    shape = 4.0 * dummies * second**3 / third**2
    scale = third / (2.0 * second)
    reached = np.maximum((pairs - dummies * mean) / scale + shape, 0.0)
    return np.minimum(1.0, 2.0 * np.minimum(gammainc(shape, reached), gammaincc(shape, reached)))
