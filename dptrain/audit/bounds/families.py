"""Made-up scores whose true epsilon is known, to hold bounds against.

Every family is a mechanism that keeps (epsilon, delta)-DP in each canary's coin, exactly at the epsilon given:

    unrelated    scores that do not know the coins (epsilon is 0)
    gaussian     one Gaussian release a canary
    laplace      one Laplace release a canary: pure DP, far from Gaussian
    subsampled   likelihood-ratio scores of DP-SGD with Poisson sampling, q = 0.1 over 100 steps
    correlated   Gaussian releases whose noise is shared within blocks of 50 canaries
    bursts       one run in five leaks of all canaries at once, the others of none
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from dptrain.audit.bounds.bound import Coins, Floats
from dptrain.audit.bounds.curve import gaussian_mu
from dptrain.audit.bounds.score_law import SampledGaussian
from dptrain.errors import ConfigError

RATE, STEPS = 0.1, 100
"""Of the subsampled family."""
BLOCK, SHARED = 50, 0.3
"""Canaries in a block, and share of the noise's variance that they have in common."""
BURST = 0.2
"""Share of runs that leak."""

Draw = Callable[[np.random.Generator, int], tuple[Floats, Coins]]


@dataclass(frozen=True)
class ScoreFamily:
    """Where scores come from, what is true of them, and so which bounds' assumptions hold."""

    name: str
    epsilon: float
    draw: Draw
    """(generator, m) -> (scores, included): (m,) each."""
    law: SampledGaussian
    """The mechanism whose likelihood ratios the bound ``optimal`` is told that the scores are."""
    independent: bool
    gaussian_scores: bool
    gaussian_curve: bool
    own_law: bool
    """Whether scores are likelihood ratios of ``law``, or independent of the coins."""


def build_family(name: str, epsilon: float, delta: float, canaries: int) -> ScoreFamily:
    """A family by name, at a true epsilon (ignored by unrelated ones).

    Raises:
        ConfigError: unknown name, or an epsilon that the family cannot have.
    """
    mu = gaussian_mu(epsilon, delta)
    law = SampledGaussian(1.0, 1.0 / mu, 1)
    match name:
        case "unrelated":
            return ScoreFamily(name, 0.0, _unrelated, law, True, True, True, True)
        case "gaussian":
            return ScoreFamily(name, epsilon, partial(_gaussian, mu), law, True, True, True, True)
        case "laplace":
            scale = epsilon - 2.0 * math.log1p(-delta)
            return ScoreFamily(name, epsilon, partial(_laplace, scale), law, True, False, False, False)
        case "subsampled":
            law = sampled_law(RATE, STEPS, epsilon, delta)
            return ScoreFamily(name, epsilon, partial(_sampled, law), law, True, False, False, True)
        case "correlated":
            shift = mu * math.sqrt((1.0 - SHARED) / (1.0 - SHARED / (1.0 + SHARED * (min(BLOCK, canaries) - 1))))
            return ScoreFamily(name, epsilon, partial(_correlated, shift, mu), law, False, False, True, False)
        case "bursts":
            if delta >= BURST / 2.0:
                raise ConfigError("delta", delta, "is too large for the family bursts", "use a delta below 0.1")
            burst = gaussian_mu(epsilon, delta / BURST)
            return ScoreFamily(name, epsilon, partial(_bursts, burst), law, False, False, False, False)
        case _:
            raise ConfigError("families", name, "is not a family of scores", "choose among " + ", ".join(FAMILIES))


FAMILIES = ("unrelated", "gaussian", "laplace", "subsampled", "correlated", "bursts")


def sampled_law(rate: float, steps: int, epsilon: float, delta: float) -> SampledGaussian:
    """The sampled Gaussian mechanism with this epsilon at delta; its noise is found to a relative 1e-4, rounded down.

    Raises:
        ConfigError: no noise multiplier in [0.2, 200] has it.
    """
    low, high = 0.2, 200.0
    law = SampledGaussian(rate, 1.0, steps)
    if not law.epsilon(delta, high) <= epsilon <= law.epsilon(delta, low):
        raise ConfigError("epsilon", epsilon, "is out of reach of the family subsampled", "use one from 0.05 to 30")
    while high / low > 1.0001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if law.epsilon(delta, middle) >= epsilon else (low, middle)
    return SampledGaussian(rate, low, steps)


def _coins(rng: np.random.Generator, canaries: int) -> Coins:
    return rng.random(canaries) < 0.5


def _unrelated(rng: np.random.Generator, canaries: int) -> tuple[Floats, Coins]:
    return rng.standard_normal(canaries), _coins(rng, canaries)


def _gaussian(mu: float, rng: np.random.Generator, canaries: int) -> tuple[Floats, Coins]:
    included = _coins(rng, canaries)
    seen = included + rng.standard_normal(canaries) / mu
    return mu * mu * (seen - 0.5), included


def _laplace(scale: float, rng: np.random.Generator, canaries: int) -> tuple[Floats, Coins]:
    included = _coins(rng, canaries)
    return included + rng.laplace(size=canaries) / scale, included


def _sampled(law: SampledGaussian, rng: np.random.Generator, canaries: int) -> tuple[Floats, Coins]:
    included = _coins(rng, canaries)
    drawn = (rng.random((canaries, law.steps)) < law.sampling_rate) & included[:, None]
    return law.scores(drawn + law.noise_multiplier * rng.standard_normal((canaries, law.steps))), included


def _correlated(shift: float, mu: float, rng: np.random.Generator, canaries: int) -> tuple[Floats, Coins]:
    """Noise e + c of variance 1, c common to a block: whoever sees the block can take most of c away, so that the
    shift is ``mu^2 / (Sigma^-1)_ii`` under the root to be worth mu."""
    included = _coins(rng, canaries)
    common = np.repeat(rng.standard_normal(-(-canaries // BLOCK)), BLOCK)[:canaries]
    noise = math.sqrt(1.0 - SHARED) * rng.standard_normal(canaries) + math.sqrt(SHARED) * common
    return mu * (shift * included + noise), included


def _bursts(mu: float, rng: np.random.Generator, canaries: int) -> tuple[Floats, Coins]:
    included = _coins(rng, canaries)
    leaks = rng.random() < BURST
    return mu * (mu * included * leaks + rng.standard_normal(canaries)), included
