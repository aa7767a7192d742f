"""The multilayer perceptron."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import nn

from dptrain.models.options import activation as activation_layer
from dptrain.models.options import whole_numbers
from dptrain.registry import models


@models.register("mlp")
def mlp(
    input_shape: tuple[int, ...], num_outputs: int, hidden: Sequence[int] = (128,), activation: str = "tanh"
) -> nn.Module:
    """Linear layers with an activation between them, (R, *input_shape) -> (R, num_outputs).

    Bounded activations keep gradients small and so lose less to clipping (Papernot et al. 2021,
    "Tempered sigmoid activations for deep learning with differential privacy"): tanh is the default.

    Args:
        input_shape: shape of one row; it is flattened.
        num_outputs: classes, or 1 for binary and regression.
        hidden: widths of the hidden layers, each at least 1; empty gives the linear model.
        activation: tanh, relu, gelu or silu.

    Raises:
        ConfigError: a width or the activation is not one of these.
    """
    widths = [math.prod(input_shape), *whole_numbers("model.options.hidden", hidden, low=1)]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), activation_layer("model.options.activation", activation)]
    if len(widths) == 1:
        activation_layer("model.options.activation", activation)  # refused even where it is not used
    return nn.Sequential(*layers, nn.Linear(widths[-1], num_outputs))
