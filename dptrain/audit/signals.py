"""What a reference attack reads off a model: two numbers a unit, from its outputs on the unit's rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_expit, log_softmax, logsumexp

from dptrain.audit.scores import per_unit
from dptrain.errors import ConfigError

Floats = NDArray[np.float64]
TASKS = ("binary", "multiclass")


@dataclass(frozen=True)
class Signals:
    """Of one model (U,) or of several (K, U); a unit's value is the mean over its rows."""

    phi: Floats
    """Log odds of the true class, log p_y - log(1 - p_y): Carlini et al. 2022 ("Membership inference attacks from
    first principles"), section IV-C, in the stable form z_y - logsumexp of the other logits."""
    log_p: Floats
    """log p_y, at most 0."""


def signals(outputs: NDArray, targets: NDArray, unit_id: NDArray, task: str) -> Signals:
    """Signals (U,) of one model, units in ascending order of id.

    Args:
        outputs: (N, K) logits, (N, 1) for binary.
        targets: (N,) class index.
        unit_id: (N,).
        task: binary or multiclass.

    Outputs that are not finite (a diverged model) are taken as 0 for the log odds and log 1/2 for the probability.

    Raises:
        ConfigError: another task: without classes there is no probability to compare.
    """
    check_task(task)
    z, y = np.asarray(outputs, np.float64), np.asarray(targets).astype(np.int64)
    with np.errstate(all="ignore"):
        if task == "binary":
            phi = np.where(y == 1, z[:, 0], -z[:, 0])
            log_p = log_expit(phi)
        else:
            index = np.arange(len(y)), y
            others = z.copy()
            others[index] = -np.inf
            phi = z[index] - np.asarray(logsumexp(others, axis=1))
            log_p = log_softmax(z, axis=1)[index]
    phi = np.where(np.isfinite(phi), phi, 0.0)
    log_p = np.where(np.isfinite(log_p), log_p, np.log(0.5))
    return Signals(per_unit(phi, unit_id), per_unit(log_p, unit_id))


def check_task(task: str) -> None:
    """Refuses what has no classes."""
    if task not in TASKS:
        problem = f"the run is a {task}, and reference attacks compare probabilities of classes"
        raise ConfigError("audit.budget", task, problem, "leave audit.budget=null")


def stack(parts: list[Signals]) -> Signals:
    """(K, U) of K models."""
    return Signals(np.stack([part.phi for part in parts]), np.stack([part.log_p for part in parts]))
