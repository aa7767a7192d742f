"""BaVarIA: the likelihood-ratio attack with a Bayesian variance for every unit, steady with few references.

Source: Brännvall 2026, "Exponential-family membership inference: from LiRA and RMIA to BaVarIA" (2603.11799):
conjugate normal-inverse-gamma priors in place of the switch between one variance and one a unit; the Student-t
predictive that follows (BaVarIA-t), or a normal with the steadied variance (BaVarIA-n). The priors' numbers are ours.

The variance has an inverse-gamma prior, fitted by moments to all units of one side together. The mean has none: the
limit of a prior of no strength. One that was fitted, too, tied a unit's variance to how far its mean lies from the
others' (that is what conjugacy does), which made the outliers, who are the most exposed, look the least certain. Beside
the numbers that an implementation of the paper uses: docs/results/audit.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

SHAPES = (2.0, 50.0)
"""Least and most prior shape: below, the predictive has no variance; above, units share one variance in effect."""


@dataclass(frozen=True)
class Prior:
    """Of a unit's variance: inverse gamma."""

    shape: float
    scale: float


@dataclass(frozen=True)
class Posterior:
    """Normal-inverse-gamma of each unit, given its references; every field (U,)."""

    centre: Floats
    strength: Floats
    shape: Floats
    scale: Floats


def bavaria_t(phi: Floats, references: Floats, included: Mask) -> Floats:  # (U,), (K, U), (K, U) -> (U,)
    """Log predictive density (Student's t) of ``phi`` given the references with the unit, minus that without it.

    Args:
        phi: (U,) log odds under the audited model.
        references: (K, U) under the references.
        included: (K, U) whether reference k trained on unit u; every unit is in and out of at least one.
    """
    parts = [posterior(references, chosen) for chosen in (included, ~included)]
    inside, outside = (
        _student(phi, 2 * p.shape, p.centre, p.scale * (p.strength + 1) / (p.shape * p.strength)) for p in parts
    )
    return inside - outside


def bavaria_n(phi: Floats, references: Floats, included: Mask) -> Floats:
    """The same with normal densities whose variances are the posteriors' means; arguments as ``bavaria_t``."""
    parts = [posterior(references, chosen) for chosen in (included, ~included)]
    inside, outside = (_normal(phi, p.centre, p.scale / (p.shape - 1)) for p in parts)
    return inside - outside


def posterior(references: Floats, chosen: Mask) -> Posterior:
    """Of each unit's mean and variance, given the chosen references; the prior is fitted to all units."""
    count = chosen.sum(axis=0).astype(np.float64)
    if count.min() < 1:
        raise ValueError("a unit has no reference on this side")
    mean = np.where(chosen, references, 0.0).sum(axis=0) / count
    squares = np.where(chosen, np.square(references - mean), 0.0).sum(axis=0)
    prior = fit_prior(squares, count, references)
    return Posterior(centre=mean, strength=count, shape=prior.shape + count / 2, scale=prior.scale + squares / 2)


def fit_prior(squares: Floats, count: Floats, references: Floats) -> Prior:
    """Moments over units: the variance within units, and how much that differs from unit to unit.

    Args:
        squares: (U,) sum of squares of the chosen references about their mean.
        count: (U,) chosen references.
        references: (K, U) all; where no unit has two chosen ones, their spread about the unit's mean stands in.
    """
    freedom = float((count - 1).sum())
    within = squares.sum() / freedom if freedom > 0 else float(np.var(references - references.mean(axis=0)))
    within = max(within, 1e-6)
    shape = _shape(squares, count, within)
    return Prior(shape, (shape - 1) * within)


def _shape(squares: Floats, count: Floats, within: float) -> float:
    """Var of an inverse gamma is mean^2 / (shape - 2); a sample variance of n adds 2 E[variance^2] / (n - 1)."""
    several = count >= 3
    if several.sum() < 10:
        return SHAPES[0] + 1
    freedom = count[several] - 1
    second = float(np.mean(np.square(squares[several] / freedom) / (1 + 2 / freedom)))  # estimates E[variance^2]
    excess = second / within**2 - 1
    return float(np.clip(2 + 1 / excess, *SHAPES)) if excess > 0 else SHAPES[1]


def _normal(x: Floats, centre: Floats, variance: Floats) -> Floats:
    return -0.5 * np.square(x - centre) / variance - 0.5 * np.log(variance)


def _student(x: Floats, freedom: Floats, centre: Floats, square: Floats) -> Floats:
    """Log density of Student's t with its location and squared scale."""
    z = np.square(x - centre) / square
    constant = gammaln((freedom + 1) / 2) - gammaln(freedom / 2) - 0.5 * np.log(freedom * np.pi * square)
    return constant - (freedom + 1) / 2 * np.log1p(z / freedom)
