"""Membership scores: one number a unit, higher where the model looks as if it had been trained on it.

Results are internal tier: they are computed from private rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_expit, log_softmax

Floats = NDArray[np.float64]


def loss_score(outputs: NDArray, targets: NDArray, task: str) -> Floats:  # (N, K), (N,) -> (N,)
    """Minus the row's loss: cross entropy, logistic loss or squared error (Yeom et al. 2018).

    Args:
        outputs: (N, K) logits, (N, 1) logit of class 1 for binary, (N, 1) value for regression, (N, 1) mean loss of a
            row's next tokens for language, (N, T K) logits of T tokens for token_classification.
        targets: (N,) class index, or value for regression; tokens to tell for language (not read); (N, T) for
            token_classification, negative where a token has no label.
        task: binary, multiclass, regression, language or token_classification.

    Returns:
        (N,) float64. A score that is not a number becomes minus infinity: a fixed, data-independent choice.

    Raises:
        ValueError: shapes or targets do not fit the task.
    """
    if task in ("language", "token_classification"):
        return _of_tokens(outputs, targets, task)
    z, y = _checked(outputs, targets, task)
    with np.errstate(all="ignore"):  # infinite outputs of a diverged model; _ordered decides what they count
        if task == "regression":
            return _ordered(-np.square(z[:, 0] - y))
        if task == "binary":
            return _ordered(log_expit(_signed(z, y)))
        return _ordered(log_softmax(z, axis=1)[np.arange(len(y)), y.astype(np.int64)])


def logit_difference(outputs: NDArray, targets: NDArray, task: str) -> Floats:  # (N, K), (N,) -> (N,)
    """How far the true class's logit lies above the best of the others.

    Multiclass: z_y - max over j != y of z_j. (The log odds of p_y, z_y - logsumexp of the others, would rank rows
    exactly as the loss does; the margin does not.) Binary: the logit with the sign of the class. Regression has no
    such margin: minus the absolute error. With two classes, or a regression, this ranks rows as ``loss_score`` does.
    Neither has a row of many tokens: its score is that of ``loss_score``.

    Arguments, result and errors as for ``loss_score``.
    """
    if task in ("language", "token_classification"):
        return _of_tokens(outputs, targets, task)
    z, y = _checked(outputs, targets, task)
    with np.errstate(all="ignore"):
        if task == "regression":
            return _ordered(-np.abs(z[:, 0] - y))
        if task == "binary":
            return _ordered(_signed(z, y))
        index = np.arange(len(y)), y.astype(np.int64)
        others = z.copy()
        others[index] = -np.inf
        return _ordered(z[index] - others.max(axis=1))


ATTACKS: dict[str, Callable[[NDArray, NDArray, str], Floats]] = {
    "loss": loss_score,
    "logit_difference": logit_difference,
}
"""Attack by name. None needs more than the model's outputs."""


def per_unit(scores: Floats, unit_id: NDArray) -> Floats:  # (N,), (N,) -> (U,)
    """The mean score of every unit's rows, in the order of ascending unit id: one observation a unit.

    Rows of one unit are dependent; counted apart they would make intervals too narrow.

    Raises:
        ValueError: not one unit id a row.
    """
    scores, unit_id = np.asarray(scores, dtype=np.float64), np.asarray(unit_id)
    if scores.shape != unit_id.shape or scores.ndim != 1:
        raise ValueError(f"{scores.shape} scores but {unit_id.shape} unit ids")
    _, index, counts = np.unique(unit_id, return_inverse=True, return_counts=True)
    with np.errstate(invalid="ignore"):
        return _ordered(np.bincount(index, weights=scores, minlength=len(counts)) / counts)


def _of_tokens(outputs: NDArray, targets: NDArray, task: str) -> Floats:
    """Minus a row's mean loss over its tokens; 0 for a row of which no token is to be told."""
    z, y = np.asarray(outputs, dtype=np.float64), np.asarray(targets)
    wide = z.ndim == 2 and len(y) == len(z) and y.ndim == (1 if task == "language" else 2)
    if not wide or (z.shape[1] != 1 if task == "language" else z.shape[1] % y.shape[1]):
        raise ValueError(f"outputs of shape {z.shape} and targets of shape {y.shape} do not fit task={task!r}")
    if task == "language":
        return _ordered(-z[:, 0])
    with np.errstate(all="ignore"):
        told = log_softmax(z.reshape(*y.shape, -1), axis=2)
        chosen = np.take_along_axis(told, np.maximum(y, 0)[:, :, None], axis=2)[:, :, 0]
    counted = y >= 0
    return _ordered(np.where(counted, chosen, 0.0).sum(axis=1) / np.maximum(counted.sum(axis=1), 1))


def _checked(outputs: NDArray, targets: NDArray, task: str) -> tuple[Floats, Floats]:
    z, y = np.asarray(outputs, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if z.ndim != 2 or y.shape != (len(z),):
        raise ValueError(f"outputs of shape {z.shape} and targets of shape {y.shape}; wanted (N, K) and (N,)")
    if task not in ("binary", "multiclass", "regression"):
        raise ValueError(f"task={task!r} is not binary, multiclass or regression")
    if (z.shape[1] < 2) if task == "multiclass" else (z.shape[1] != 1):
        raise ValueError(f"{z.shape[1]} outputs a row do not fit task={task!r}")
    classes = {"binary": 2, "multiclass": z.shape[1]}.get(task)
    if classes and not np.isin(y, np.arange(classes)).all():
        raise ValueError(f"targets must be whole numbers from 0 to {classes - 1}")
    return z, y


def _signed(z: Floats, y: Floats) -> Floats:
    return np.where(y == 1, z[:, 0], -z[:, 0])


def _ordered(scores: Floats) -> Floats:
    return np.where(np.isnan(scores), -np.inf, scores)
