"""Metrics on the public split. A user's own is a function filed under ``registry.metrics``.

scikit-learn computes them; it is imported when the first one is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dptrain.data.source import IGNORED, TOKENS
from dptrain.registry import metrics

BY_TASK = {
    "multiclass": ["accuracy"],
    "binary": ["accuracy", "auroc"],
    "regression": ["mae", "rmse"],
    "language": ["perplexity"],
    TOKENS: ["token_accuracy", "entity_f1"],
}
CLASSES, NUMBERS = ("binary", "multiclass"), ("regression",)
FITS = {
    **dict.fromkeys(("accuracy", "auroc", "average_precision", "f1", "log_loss"), CLASSES),
    **dict.fromkeys(("mae", "rmse"), NUMBERS),
    "perplexity": ("language",),
    **dict.fromkeys(("token_accuracy", "entity_f1"), (TOKENS,)),
}
"""Shipped metric -> tasks that it means something for; a user's own says nothing and is taken."""
LOWER_IS_BETTER = ("log_loss", "mae", "rmse", "perplexity")


@dataclass(frozen=True)
class Predictions:
    """Outputs of a model on public rows, read the way the task means them."""

    task: str
    outputs: np.ndarray  # (N, K) float64: logits, or values; (N, T K) for token_classification
    targets: np.ndarray  # (N,) class index or value; (N, T) for token_classification
    class_names: tuple[str, ...] = ()
    """Of a classification; what ``entity_f1`` reads spans from."""

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
        """(N,) most likely class; (N, T) of each token for token_classification."""
        if self.task == TOKENS:
            return self.outputs.reshape(*self.targets.shape, -1).argmax(axis=2)
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


@metrics.register("perplexity")
def perplexity(p: Predictions) -> float:
    """exp of the mean loss a token (of a language model): a row counts by the tokens that it has to tell."""
    weight = np.maximum(p.targets.astype(float), 0.0)
    return float(np.exp(min((p.outputs[:, 0] * weight).sum() / max(weight.sum(), 1.0), 700.0)))


@metrics.register("token_accuracy")
def token_accuracy(p: Predictions) -> float:
    """Share of labelled tokens whose most likely class is the true one; 0 where no token has a label."""
    counted = p.targets != IGNORED
    return float(np.sum((p.labels == p.targets) & counted) / max(np.sum(counted), 1))


@metrics.register("entity_f1")
def entity_f1(p: Predictions) -> float:
    """F1 over spans of words of one kind, found whole (CoNLL-2003): class names B-KIND, I-KIND and O.

    A span goes on with I- of its own kind; an I- behind anything else opens one (IOB1 and IOB2 alike). Names without a
    dash, but O, are spans of one kind as long as they go on. 0 where neither side has a span that the other has.
    """
    true = [_spans(row, p.class_names) for row in _labelled(p.targets, p.targets)]
    told = [_spans(row, p.class_names) for row in _labelled(p.labels, p.targets)]
    both = sum(len(a & b) for a, b in zip(true, told, strict=True))
    return 2.0 * both / max(sum(map(len, true)) + sum(map(len, told)), 1)


def _labelled(classes: np.ndarray, targets: np.ndarray) -> list[list[int]]:
    """Each row's classes at labelled tokens alone: one a word."""
    return [row[kept].tolist() for row, kept in zip(classes, targets != IGNORED, strict=True)]


def _spans(classes: list[int], names: tuple[str, ...]) -> set[tuple[int, int, str]]:
    """(first word, word behind the last, kind) of every span."""
    found, start, kind = set(), 0, ""
    for place, index in enumerate([*classes, -1]):
        name = names[index] if 0 <= index < len(names) else "O"
        mark, dash, rest = name.partition("-")
        own = "" if name == "O" else rest if dash else name
        if own != kind or (mark == "B" and dash):
            if kind:
                found.add((start, place, kind))
            start, kind = place, own
    return found
