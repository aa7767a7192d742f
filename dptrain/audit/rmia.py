"""RMIA: how much likelier the audited model makes a unit than models at large do.

Source: Zarifzadeh, Liu and Shokri 2024, "Low-cost high-power membership inference attacks" (2312.03262): the ratio
p(x | model) / p(x), with p(x) from references that did not train on x, corrected by a (their offline form).

The paper then counts which share of a population has a smaller ratio. For one model that count is a monotone map of
the ratio: it never ranks two units otherwise, and ties all those above the whole population, which is where the low
false-positive rates lie. Here units are ranked by the ratio itself; ``rmia_published`` counts, for comparison.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

OFFSETS = tuple(round(0.1 * i, 1) for i in range(11))
"""Values of a among which ``best_offset`` chooses: 0 is a p(x) half way to 1, 1 the references' mean itself."""


def rmia(log_p: Floats, references: Floats, included: Mask, a: float) -> Floats:  # (U,), (K, U), (K, U) -> (U,)
    """log of p(x | model) / p(x), p(x) = ((1 + a) mean of p over references without x + 1 - a) / 2.

    Args:
        log_p: (U,) log p_y under the audited model.
        references: (K, U) under the references.
        included: (K, U) whether reference k trained on unit u; every unit is out of at least one.
        a: in [0, 1].
    """
    count = (~included).sum(axis=0)
    if count.min() < 1:
        raise ValueError("a unit has no reference without it")
    mean = np.where(included, 0.0, np.exp(references)).sum(axis=0) / count
    return log_p - np.log(np.maximum((1 + a) / 2 * mean + (1 - a) / 2, 1e-300))


def rmia_published(ratios: Floats, population: Floats) -> Floats:  # (U,), (Z,) -> (U,)
    """The share of a population whose ratio is smaller (gamma = 1): what the paper ranks by, ties and all."""
    return np.searchsorted(np.sort(population), ratios) / len(population)


def best_offset(auc_of: Callable[[float], float]) -> float:
    """The a with the highest AUC on models whose members are known because they are references."""
    return max(OFFSETS, key=auc_of)
