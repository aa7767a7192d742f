"""How many trials a search makes: drawn once, from a declared distribution, so that the best of them can be priced.

Of a number K of independent runs of one mechanism only the best is released. Where K was drawn from one of these laws
and stays secret, that costs little more than a single run (Papernot & Steinke 2022; Liu & Talwar 2019), however many
runs there were; with a fixed K it costs as much as releasing all of them. The laws:

    truncated negative binomial (eta, gamma), k = 1, 2, ...   Definition 1; eta = 1 geometric, eta = 0 logarithmic
        P[K = k] = (1 - gamma)^k / (gamma^-eta - 1) * prod_{l < k} (l + eta) / (l + 1)
        P[K = k] = (1 - gamma)^k / (k log(1 / gamma))                                  for eta = 0
    Poisson (mean), k = 0, 1, ...                             Theorem 6; may draw 0, and then nothing is selected

As plain data, in the closed schema of ``privacy/accounting.py``:

    {"name": "truncated_negative_binomial", "eta": 1.0, "gamma": 0.025}     {"name": "poisson", "mean": 40.0}

Source: N. Papernot and T. Steinke, "Hyperparameter Tuning with Renyi Differential Privacy", ICLR 2022, Theorems 2
and 6 (arXiv 2110.03620v2, which dp-accounting's ``RepeatAndSelectDpEvent`` implements).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import count
from typing import Any

from dptrain.errors import ConfigError, suggest
from dptrain.keystream import Stream

DISTRIBUTIONS = ("geometric", "logarithmic", "truncated_negative_binomial", "poisson")
LARGEST_MEAN = 10_000.0
LARGEST_ETA = 100.0
_WORDS = 4
"""64-bit words of the uniform that is inverted: the law of K is exact but for a distance below 2^-255."""
_BITS = 64 * _WORDS
_PRECISION = _BITS + 96
_ROUNDING = 1e-9
"""Relative accuracy to which dp-accounting inverts the mean; means are priced this much higher."""


@dataclass(frozen=True)
class Trials:
    """The law of the number of trials. ``eta`` and ``gamma`` are None for Poisson.

    Args:
        name: ``truncated_negative_binomial`` or ``poisson``.
        mean: expected number of trials, above 1 and at most 10,000 (Poisson: from 1).
        eta: shape, in [0, 100].
        gamma: in (0, 1); the mean follows from it.
    """

    name: str
    mean: float
    eta: float | None = None
    gamma: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As it stands in an event."""
        if self.name == "poisson":
            return {"name": "poisson", "mean": self.mean}
        return {"name": self.name, "eta": self.eta, "gamma": self.gamma}

    @property
    def shape(self) -> float:
        """dp-accounting's parameter: eta, or infinity for Poisson."""
        return math.inf if self.eta is None else self.eta

    @property
    def priced_mean(self) -> float:
        """The mean to price with: a hair higher, so that dp-accounting's gamma is never above ours."""
        return self.mean if self.gamma is None else self.mean * (1.0 + 3.0 * _ROUNDING)

    @property
    def describe(self) -> str:
        """In words, for the statement and the console."""
        if self.eta is None:
            return f"Poisson, mean {self.mean:g}"
        kind = {0.0: "logarithmic", 1.0: "geometric"}.get(self.eta, f"truncated negative binomial, eta {self.eta:g}")
        return f"{kind}, mean {self.mean:g}"


def trials_with_mean(distribution: str, mean: float, eta: float | None = None) -> Trials:
    """The law of that name with at most that mean.

    Args:
        distribution: one of ``DISTRIBUTIONS``.
        mean: expected number of trials.
        eta: with ``truncated_negative_binomial`` alone.

    Raises:
        ConfigError: the name is unknown or a value is out of range.
    """
    if distribution not in DISTRIBUTIONS:
        raise ConfigError(
            "tuning.trials_distribution", distribution, "is no such law", suggest(distribution, DISTRIBUTIONS)
        )
    if (eta is not None) != (distribution == "truncated_negative_binomial"):
        raise ConfigError(
            "tuning.eta",
            eta,
            "goes with tuning.trials_distribution=truncated_negative_binomial, and is needed there",
            "set both, or leave tuning.eta out",
        )
    poisson = distribution == "poisson"
    if not (1 <= mean <= LARGEST_MEAN and (mean > 1 or poisson)):
        raise ConfigError(
            "tuning.mean_trials",
            mean,
            f"must be above 1 and at most {LARGEST_MEAN:g}",
            "choose the number of trials that you would make on average",
        )
    if poisson:
        return Trials("poisson", float(mean))
    shape = {"geometric": 1.0, "logarithmic": 0.0}.get(distribution, eta)
    assert shape is not None
    return negative_binomial(shape, _gamma_for(shape, mean))


def negative_binomial(eta: float, gamma: float) -> Trials:
    """The truncated negative binomial law with these parameters. Raises ConfigError where they are out of range."""
    if not 0 <= eta <= LARGEST_ETA:
        raise ConfigError("tuning.eta", eta, f"must be in [0, {LARGEST_ETA:g}]", "0 is logarithmic, 1 is geometric")
    if not 0 < gamma < 1:
        raise ConfigError("tuning.gamma", gamma, "must be in (0, 1)", "set tuning.mean_trials instead")
    mean = _mean_of(eta, gamma)
    if not 1 < mean <= LARGEST_MEAN * (1 + 1e-6):
        raise ConfigError("tuning.gamma", gamma, f"gives a mean of {mean:g} trials", f"stay below {LARGEST_MEAN:g}")
    return Trials("truncated_negative_binomial", mean, float(eta), float(gamma))


def trials_from(data: Any) -> Trials:
    """The law that an event names. Raises ConfigError for anything outside the schema."""
    match data:
        case {"name": "poisson", "mean": float() | int() as mean} if len(data) == 2 and not isinstance(mean, bool):
            return trials_with_mean("poisson", float(mean))
        case {"name": "truncated_negative_binomial", "eta": float() | int() as eta, "gamma": float() as gamma} if len(
            data
        ) == 3 and not isinstance(eta, bool):
            return negative_binomial(float(eta), gamma)
        case _:
            raise ConfigError("event", str(data)[:80], "is no law of a number of trials", "use the plan's own event")


def _mean_of(eta: float, gamma: float) -> float:
    log = math.log(gamma)
    if eta == 0:
        return (1 - gamma) / (-gamma * log)
    return eta * (1 - gamma) / (gamma * -math.expm1(eta * log))


def _gamma_for(eta: float, mean: float) -> float:
    """The smallest gamma, to one part in 10^14, whose mean is at most ``mean`` (the mean falls as gamma rises)."""
    if eta == 1:
        gamma = 1 / mean
        return gamma if _mean_of(eta, gamma) <= mean else math.nextafter(gamma, 1.0)
    low, high = 1e-12, 1.0 - 1e-12
    while high > low * (1 + 1e-14):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _mean_of(eta, middle) > mean else (low, middle)
    return high


def draw_trials(trials: Trials, stream: Stream) -> int:
    """Draws K by inverting the distribution function at a 256-bit uniform, in 352-bit arithmetic.

    Guarantee: the law of K is within total variation 2^-255 of the declared one; it is never cut off.
    """
    uniform = 0
    for word in stream.uint64(_WORDS).tolist():
        uniform = (uniform << 64) | int(word)
    return _inverse(trials, uniform)


def quantile(trials: Trials, probability: float) -> int:
    """The smallest k with P[K <= k] of at least ``probability``, which is in [0, 1). Public: it depends on no draw."""
    if not 0 <= probability < 1:
        raise ValueError(f"probability={probability} is not in [0, 1)")
    return _inverse(trials, math.ceil(probability * 2**_BITS) - 1 if probability else 0)


def _inverse(trials: Trials, uniform: int) -> int:
    """The smallest k with P[K <= k] above ``uniform`` / 2^256."""
    import mpmath

    with mpmath.workprec(_PRECISION):
        target = mpmath.mpf(uniform) / mpmath.mpf(2) ** _BITS
        total = mpmath.mpf(0)
        for k, mass in _masses(trials, mpmath):
            total += mass
            if total > target or (mass < mpmath.mpf(2) ** -(_BITS + 64) and k > 2 * trials.mean):
                return k
    raise AssertionError("unreachable: the masses add up to one")


def _masses(trials: Trials, mpmath: Any) -> Any:
    """(k, P[K = k]) in rising order of k."""
    if trials.eta is None or trials.gamma is None:
        mass = mpmath.exp(-mpmath.mpf(trials.mean))
        for k in count(0):
            yield k, mass
            mass *= mpmath.mpf(trials.mean) / (k + 1)
    else:
        eta, rest = mpmath.mpf(trials.eta), 1 - mpmath.mpf(trials.gamma)
        log = -mpmath.log(mpmath.mpf(trials.gamma))
        mass = rest / log if trials.eta == 0 else rest * eta / mpmath.expm1(eta * log)
        for k in count(1):
            yield k, mass
            mass *= rest * (k + eta) / (k + 1)


def pick(number: int, stream: Stream) -> int:
    """One of 0 .. number-1, exactly uniform (rejection on 64-bit words)."""
    if not 1 <= number < 1 << 63:
        raise ValueError(f"number={number} is not in [1, 2^63)")
    whole = (1 << 64) - (1 << 64) % number
    while True:
        word = int(stream.uint64(1)[0])
        if word < whole:
            return word % number
