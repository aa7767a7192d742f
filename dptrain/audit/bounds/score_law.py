"""The law of likelihood-ratio scores under DP-SGD with Poisson sampling, at the run's own noise and at any other.

At every step a canary's own direction of the released sum reads x = b + z, in units of the sensitivity: z is Gaussian
with standard deviation ``noise_multiplier``; b is 1 where the canary is in the training data and was drawn (probability
q a step), else 0. Its score is the log-likelihood ratio of "in" against "out" under the run's own noise,

    s = sum over steps of log(1 - q + q exp((2 x - 1) / (2 sigma^2))).

If the noise were of another size sigma', the same s would be worth the log-likelihood ratio that its laws under sigma'
have at s (``log_odds``). For q = 1 that is s sigma^2 / sigma'^2. Otherwise both laws are composed by FFT, tilted
exponentially so that tails keep their relative accuracy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import ndtr

from dptrain.audit.bounds.bound import Floats
from dptrain.audit.bounds.curve import gaussian_epsilon
from dptrain.privacy import accounting

CELLS = 2**16
"""Cells of the grid on which scores are composed."""
WINDOW = 60.0
"""Width of the grid, in standard deviations of the score of a canary that is in, at the run's own noise;"""
PLACES = (-5.0, -2.5, 0.0, 2.5, 5.0, 8.0, 12.0, 17.0, 24.0)
"""where the composed law is centred in turn, in the same unit, from the mean of the same score."""
TRUSTED = 5.0
"""Standard deviations around a tilted mean in which the composed law is read."""


@dataclass(frozen=True)
class SampledGaussian:
    """The mechanism that the plan describes: ``steps`` Gaussian releases, each on a Poisson sample.

    Raises:
        ValueError: a rate outside (0, 1], noise that is not above 0, or fewer than 1 step.
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        if not (0.0 < self.sampling_rate <= 1.0 and 0.0 < self.noise_multiplier < math.inf and self.steps >= 1):
            raise ValueError(f"{self} is not a mechanism: rate in (0, 1], noise above 0, steps at least 1")

    def scores(self, seen: Floats) -> Floats:
        """(m,) scores from (m, steps) readings of each canary's own direction, in units of the sensitivity."""
        return step_scores(seen, self.sampling_rate, self.noise_multiplier).sum(axis=-1)

    def epsilon(self, delta: float, noise_multiplier: float) -> float:
        """Epsilon at delta in (0, 1) of the same mechanism with noise of another size."""
        if self.sampling_rate == 1.0:
            return gaussian_epsilon(math.sqrt(self.steps) / noise_multiplier, delta)
        return _sampled_epsilon(self.sampling_rate, noise_multiplier, self.steps, delta)

    def log_odds(self, scores: Floats, noise_multiplier: float) -> Floats:
        """(m,) log-likelihood ratios that these scores carry if the noise is of this size."""
        if self.sampling_rate == 1.0:
            return scores * (self.noise_multiplier / noise_multiplier) ** 2
        if self.steps == 1:
            seen = _seen(np.maximum(scores, math.log1p(-self.sampling_rate) + 1e-300), self)
            return step_scores(seen, self.sampling_rate, noise_multiplier)
        at, odds = _composed_odds(self, noise_multiplier)
        below, above = (odds[1] - odds[0]) / (at[1] - at[0]), (odds[-1] - odds[-2]) / (at[-1] - at[-2])
        inside = np.interp(scores, at, odds)
        return inside + np.minimum(scores - at[0], 0.0) * below + np.maximum(scores - at[-1], 0.0) * above


def step_scores(seen: Floats, rate: float, noise: float) -> Floats:
    """log(1 - q + q exp((2 x - 1) / (2 sigma^2))), elementwise, without overflow."""
    if rate == 1.0:
        return (2.0 * seen - 1.0) / (2.0 * noise**2)
    return np.logaddexp(math.log1p(-rate), math.log(rate) + (2.0 * seen - 1.0) / (2.0 * noise**2))


def _seen(scores: Floats, law: SampledGaussian) -> Floats:
    """The reading that has this score at one step; -inf at and below the least score."""
    with np.errstate(divide="ignore", invalid="ignore"):
        gone = scores + np.log(-np.expm1(math.log1p(-law.sampling_rate) - scores))
        seen = law.noise_multiplier**2 * (gone - math.log(law.sampling_rate)) + 0.5
    return np.where(scores > math.log1p(-law.sampling_rate), seen, -np.inf)


@lru_cache(maxsize=4096)
def _sampled_epsilon(rate: float, noise: float, steps: int, delta: float) -> float:
    step = accounting.poisson_sampled(rate, accounting.gaussian(noise))
    return accounting.epsilon(accounting.self_composed(steps, step), delta)


@lru_cache(maxsize=2048)
def _composed_odds(law: SampledGaussian, noise: float) -> tuple[Floats, Floats]:
    """(scores, log odds at them), 1,024 points over the range where both laws are accurate."""
    rate = law.sampling_rate
    middle, spread = _moments(law)
    top = float(step_scores(np.array(1.0 + 12.0 * max(noise, law.noise_multiplier)), rate, law.noise_multiplier))
    cell = WINDOW * spread / CELLS
    first, last = math.floor(math.log1p(-rate) / cell), math.ceil(top / cell)
    seen = _seen(np.asarray(cell * np.arange(first, last + 2), dtype=np.float64), law)
    outside, inside = ndtr(seen / noise), ndtr((seen - 1.0) / noise)
    masses = (np.diff(outside), np.diff((1 - rate) * outside + rate * inside))
    centres = np.asarray(cell * (np.arange(first, last + 1) + 0.5), dtype=np.float64)
    least = law.steps * float(centres[0])
    goals = [middle + place * spread for place in PLACES]
    pieces = [[_tilted(mass, centres, cell, law.steps, goal) for goal in goals if goal > least] for mass in masses]
    at = np.linspace(goals[0], goals[-1], 4096)
    (quiet, far), (drawn, far_too) = (_read(some, at) for some in pieces)
    good = np.flatnonzero((np.maximum(far, far_too) <= TRUSTED) & (at > least + spread / 10.0))
    centre = int(np.searchsorted(at[good], middle))
    start = centre - int(np.argmax(np.append(np.diff(good[: centre + 1])[::-1] > 1, True)))
    end = centre + int(np.argmax(np.append(np.diff(good[centre:]) > 1, True)))
    kept = good[start : end + 1]
    return at[kept], (drawn - quiet)[kept]


def _moments(law: SampledGaussian) -> tuple[float, float]:
    """Mean and standard deviation of the score of a canary that is in, at the run's own noise."""
    rate, fine = law.sampling_rate, np.linspace(-9.0, 9.0, 4001)
    weight = np.exp(-(fine**2) / 2.0) / np.exp(-(fine**2) / 2.0).sum()
    values = [step_scores(b + law.noise_multiplier * fine, rate, law.noise_multiplier) for b in (0.0, 1.0)]
    mean, square = ((1 - rate) * weight @ values[0] ** k + rate * weight @ values[1] ** k for k in (1, 2))
    return law.steps * float(mean), math.sqrt(law.steps * float(square - mean**2))


_Piece = tuple[float, float, Floats, Floats]
"""Mean and standard deviation of the tilted law of the sum, where it was read, and the untilted log mass there."""


def _tilted(mass: Floats, centres: Floats, cell: float, steps: int, goal: float) -> _Piece:
    """The law of the sum around ``goal``: tilted so that its mean is there, composed, and tilted back."""
    logs = np.log(np.maximum(mass, 1e-300))

    def mean_at(tilt: float) -> float:
        tilted = np.exp(logs + tilt * centres - (logs + tilt * centres).max())
        return float(tilted @ centres) / float(tilted.sum())

    low, high = -1.0, 1.0
    while mean_at(low) * steps > goal and low > -1e3:
        low *= 2.0
    while mean_at(high) * steps < goal and high < 1e3:
        high *= 2.0
    for _ in range(20):
        tilt = (low + high) / 2.0
        low, high = (tilt, high) if mean_at(tilt) * steps < goal else (low, tilt)
    tilt = (low + high) / 2.0
    exponent = logs + tilt * centres
    shift = float(exponent.max())
    weighted = np.exp(exponent - shift)
    total = float(weighted.sum())
    weighted /= total
    mean = float(weighted @ centres)
    spread = math.sqrt(steps * max(float(weighted @ (centres - mean) ** 2), cell**2))
    folded = np.bincount(np.arange(len(weighted)) % CELLS, weights=weighted, minlength=CELLS)
    summed = np.fft.irfft(np.fft.rfft(folded) ** steps, CELLS)
    half = min(CELLS // 2 - 1, int(TRUSTED * spread / cell) + 2)
    places = round(steps * (mean - centres[0]) / cell) + np.arange(-half, half + 1)
    where = steps * centres[0] + cell * places
    masses = np.log(np.maximum(summed[places % CELLS], 1e-300)) + steps * (math.log(total) + shift) - tilt * where
    return steps * mean, spread, where, masses


def _read(pieces: list[_Piece], at: Floats) -> tuple[Floats, Floats]:
    """Log mass at each score, from the piece whose centre is nearest in its own standard deviations; and how near."""
    distance = np.stack([np.abs(at - mean) / spread for mean, spread, _, _ in pieces])
    values = np.stack([np.interp(at, where, logs) for _, _, where, logs in pieces])
    nearest = distance.argmin(axis=0)[None]
    return np.take_along_axis(values, nearest, axis=0)[0], np.take_along_axis(distance, nearest, axis=0)[0]
