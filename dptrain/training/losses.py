"""Losses, one value a row. A user's own is a function filed under ``registry.losses`` with the same signature.

Reductions over the batch are the engine's business: a loss that averages would mix units and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from dptrain.data.source import IGNORED, TOKENS
from dptrain.errors import ConfigError
from dptrain.registry import losses

if TYPE_CHECKING:
    from dptrain.gradients.protocol import RowLoss

BY_TASK = {
    "multiclass": "cross_entropy",
    "binary": "binary_cross_entropy",
    "regression": "mse",
    "language": "next_token",
    TOKENS: "token_cross_entropy",
}


@losses.register("cross_entropy")
def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:  # (R, K) logits, (R,) class -> (R,)
    """Softmax cross entropy in nats."""
    return F.cross_entropy(outputs, targets, reduction="none")


@losses.register("binary_cross_entropy")
def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:  # (R, 1) logit, (R,) 0/1 -> (R,)
    """Logistic loss in nats."""
    return F.binary_cross_entropy_with_logits(outputs.squeeze(-1), targets.to(outputs.dtype), reduction="none")


@losses.register("mse")
def mse(outputs: Tensor, targets: Tensor) -> Tensor:  # (R, 1), (R,) -> (R,)
    """Squared error."""
    return (outputs.squeeze(-1) - targets).square()


@losses.register("mae")
def mae(outputs: Tensor, targets: Tensor) -> Tensor:  # (R, 1), (R,) -> (R,)
    """Absolute error."""
    return (outputs.squeeze(-1) - targets).abs()


@losses.register("huber")
def huber(outputs: Tensor, targets: Tensor) -> Tensor:  # (R, 1), (R,) -> (R,)
    """Huber loss, quadratic within 1."""
    return F.huber_loss(outputs.squeeze(-1), targets, reduction="none")


@losses.register("next_token")
def next_token(outputs: Tensor, targets: Tensor) -> Tensor:  # (R, 1), (R,) tokens to tell -> (R,)
    """Mean loss of a row's next tokens in nats: what ``models/text_heads.LanguageModel`` gives as its output."""
    return outputs[:, 0]


@losses.register("token_cross_entropy")
def token_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:  # (R, T K) logits, (R, T) class or IGNORED -> (R,)
    """Mean softmax cross entropy over a row's labelled tokens in nats; 0 for a row without one."""
    counted = (targets != IGNORED).flatten()
    scores = outputs.unflatten(1, (targets.shape[1], -1)).flatten(0, 1)  # (R T, K)
    told = F.cross_entropy(scores, targets.flatten().clamp(min=0), reduction="none")
    weight = counted.to(told.dtype)
    return (told * weight).unflatten(0, targets.shape).sum(1) / weight.unflatten(0, targets.shape).sum(1).clamp(min=1)


def row_loss(name: str, task: str, class_weights: Sequence[float] | None, num_classes: int) -> RowLoss:
    """The loss a config names, with public class weights applied.

    Args:
        name: a registered loss, or ``auto``.
        task: binary, multiclass, regression, language or token_classification.
        class_weights: one weight a class, or None.
        num_classes: number of declared classes.

    Raises:
        ConfigError: unknown loss, weights for a regression, or not one weight a class.
    """
    function: RowLoss = losses.resolve(BY_TASK[task] if name == "auto" else name)
    if class_weights is None:
        return function
    if task in ("regression", "language", TOKENS):
        raise ConfigError("task.class_weights", list(class_weights), f"{task} takes no weights", "leave it unset")
    if len(class_weights) != num_classes:
        raise ConfigError(
            "task.class_weights", list(class_weights), f"the data has {num_classes} classes", "give one weight a class"
        )
    weights = torch.tensor(list(class_weights))

    def weighted(outputs: Tensor, targets: Tensor) -> Tensor:
        return function(outputs, targets) * weights.to(outputs.device)[targets]

    return weighted


def check_row_loss(function: RowLoss, num_outputs: int, task: str) -> None:
    """Refuses a loss that does not give one finite value a row, on made-up rows.

    Raises:
        ConfigError: the result is not of shape (R,), or one row's value depends on the others.
    """
    outputs = torch.linspace(-1, 1, 3 * num_outputs).reshape(3, num_outputs)
    targets = torch.tensor([0.0, 0.5, 1.0]) if task == "regression" else torch.tensor([0, 1, 0])
    if task == TOKENS:
        targets = torch.tensor([[0], [1], [IGNORED]])
    remedy = "return one loss a row, shape (R,), without averaging"
    try:
        together = function(outputs, targets)
        alone = torch.cat([function(outputs[i : i + 1], targets[i : i + 1]) for i in range(3)])
    except Exception as error:
        raise ConfigError("task.loss", function.__name__, f"raised {type(error).__name__}: {error}", remedy) from error
    if together.shape != (3,):
        raise ConfigError("task.loss", function.__name__, f"gives shape {tuple(together.shape)} for 3 rows", remedy)
    if not torch.allclose(together, alone, rtol=1e-5, atol=1e-6):
        raise ConfigError("task.loss", function.__name__, "gives a row a loss that depends on other rows", remedy)
