"""LiRA: a unit's log odds under the audited model, against their law under references with and without the unit.

Source: Carlini, Chien, Nasr, Song, Terzis and Tramer 2022, "Membership inference attacks from first principles",
Algorithm 1 (online), and its offline form, which asks only how far above the models without the unit the score lies;
one variance for all units where references are few, as they recommend.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

OWN_VARIANCE_FROM = 32
"""References on each side from which on a unit's own variance is used."""
SMALLEST = 1e-3
"""Smallest standard deviation: references that agree to the last digit say nothing about their spread."""


def lira_online(phi: Floats, references: Floats, included: Mask) -> Floats:  # (U,), (K, U), (K, U) -> (U,)
    """log N(phi; mean in, deviation in) - log N(phi; mean out, deviation out).

    Args:
        phi: (U,) log odds under the audited model.
        references: (K, U) under the references.
        included: (K, U) whether reference k trained on unit u; every unit is in and out of at least one.
    """
    mean_in, std_in = moments(references, included)
    mean_out, std_out = moments(references, ~included)
    return _log_density(phi, mean_in, std_in) - _log_density(phi, mean_out, std_out)


def lira_offline(phi: Floats, references: Floats, included: Mask) -> Floats:
    """log of the chance that a model without the unit scores below ``phi``; arguments as ``lira_online``."""
    mean, std = moments(references, ~included)
    return log_ndtr((phi - mean) / std)


def moments(references: Floats, chosen: Mask) -> tuple[Floats, Floats]:  # (K, U), (K, U) -> (U,), (U,)
    """Mean and deviation of the chosen references of each unit; below 32 of them one deviation for all units.

    With one chosen reference a unit there is no spread to see on one side: the deviation is that of all references
    about their unit's mean, on both sides alike.
    """
    count = chosen.sum(axis=0)
    if count.min() < 1:
        raise ValueError("a unit has no reference on this side")
    mean = np.where(chosen, references, 0.0).sum(axis=0) / count
    squares = np.where(chosen, np.square(references - mean), 0.0).sum(axis=0)
    if count.min() >= OWN_VARIANCE_FROM:
        return mean, np.maximum(np.sqrt(squares / (count - 1)), SMALLEST)
    freedom = float((count - 1).sum())
    if freedom == 0:
        return mean, np.full(mean.shape, max(float(np.std(references - references.mean(axis=0))), SMALLEST))
    return mean, np.full(mean.shape, max(float(np.sqrt(squares.sum() / freedom)), SMALLEST))


def _log_density(x: Floats, mean: Floats, std: Floats) -> Floats:
    return -0.5 * np.square((x - mean) / std) - np.log(std)
