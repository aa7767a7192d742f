"""The linear model: logistic regression, softmax regression, least squares; the head on fixed features."""

from __future__ import annotations

import math

from torch import nn

from dptrain.models.options import truth
from dptrain.registry import models


@models.register("linear")
def linear(input_shape: tuple[int, ...], num_outputs: int, zero_init: bool = False) -> nn.Module:
    """One linear layer with bias on the flattened row, (R, *input_shape) -> (R, num_outputs).

    Args:
        input_shape: shape of one row.
        num_outputs: classes, or 1 for binary and regression.
        zero_init: start weight and bias at zero: the first outputs are the same for every row.

    Raises:
        ConfigError: ``zero_init`` is not true or false.
    """
    layer = nn.Linear(math.prod(input_shape), num_outputs)
    if truth("model.options.zero_init", zero_init):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Flatten(), layer)
