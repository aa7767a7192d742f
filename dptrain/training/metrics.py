"""Metrics on the public split. A user's own is a function filed under ``registry.metrics``.

scikit-learn computes them; it is imported when the first one is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dptrain.registry import metrics

BY_TASK = {
    "multiclass": ["accuracy"],
    "binary": ["accuracy", "auroc"],
    "regression": ["mae", "rmse"],
}
LOWER_IS_BETTER = ("log_loss", "mae", "rmse")


@dataclass(frozen=True)
class Predictions:
    """Outputs of a model on public rows, read the way the task means them."""

    task: str
    outputs: np.ndarray  # (N, K) float64: logits, or values
    targets: np.ndarray  # (N,) class index or value

    @property
    def probabilities(self) -> np.ndarray:
        """(N, C) class probabilities; C = 2 for binary tasks."""
        if self.task == "binary":
            with np.errstate(over="ignore"):
                p = 1.0 / (1.0 + np.exp(-self.outputs[:, 0]))
            return np.stack([1.0 - p, p], axis=1)
        shifted = np.exp(self.outputs - self.outputs.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)

    @property
    def labels(self) -> np.ndarray:
        """(N,) most likely class."""
        return (self.outputs[:, 0] > 0).astype(int) if self.task == "binary" else self.outputs.argmax(axis=1)

    @property
    def values(self) -> np.ndarray:
        """(N,) predicted value of a regression."""
        return self.outputs[:, 0]


@metrics.register("accuracy")
def accuracy(p: Predictions) -> float:
    """Share of rows whose most likely class is the true one."""
    return float(np.mean(p.labels == p.targets))


@metrics.register("auroc")
def auroc(p: Predictions) -> float:
    """Area under the ROC curve; one class against the rest, averaged, where there are more than two."""
    from sklearn.metrics import roc_auc_score

    if p.task == "binary":
        return float(roc_auc_score(p.targets, p.outputs[:, 0]))
    return float(roc_auc_score(p.targets, p.probabilities, multi_class="ovr", labels=np.arange(p.outputs.shape[1])))


@metrics.register("average_precision")
def average_precision(p: Predictions) -> float:
    """Area under the precision-recall curve; averaged over classes where there are more than two."""
    from sklearn.metrics import average_precision_score

    if p.task == "binary":
        return float(average_precision_score(p.targets, p.outputs[:, 0]))
    one_hot = np.eye(p.outputs.shape[1])[p.targets]
    return float(average_precision_score(one_hot, p.probabilities))


@metrics.register("f1")
def f1(p: Predictions) -> float:
    """F1 of the positive class, or averaged over classes; 0 where a class is neither there nor predicted."""
    classes = [1] if p.task == "binary" else range(p.outputs.shape[1])
    scores = []
    for c in classes:
        hit = float(np.sum((p.labels == c) & (p.targets == c)))
        wrong = float(np.sum((p.labels == c) != (p.targets == c)))
        scores.append(2 * hit / (2 * hit + wrong) if hit else 0.0)
    return float(np.mean(scores))


@metrics.register("log_loss")
def log_loss(p: Predictions) -> float:
    """Mean negative log probability of the true class, in nats."""
    chosen = p.probabilities[np.arange(len(p.targets)), p.targets.astype(int)]
    return float(-np.log(np.clip(chosen, 1e-15, 1)).mean())


@metrics.register("mae")
def mae(p: Predictions) -> float:
    """Mean absolute error."""
    return float(np.abs(p.values - p.targets).mean())


@metrics.register("rmse")
def rmse(p: Predictions) -> float:
    """Root of the mean squared error."""
    return float(np.sqrt(np.square(p.values - p.targets).mean()))
