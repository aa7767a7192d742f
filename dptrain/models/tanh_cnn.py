"""The small convolutional network of the DP literature: 26,010 parameters on 28 x 28 grey images, 10 classes."""

from __future__ import annotations

from torch import nn

from dptrain.models.options import activation as activation_layer
from dptrain.models.options import image_shape
from dptrain.registry import models

SMALLEST = 16
"""Below 16 x 16 nothing is left after the second pooling."""


@models.register("tanh_cnn")
def tanh_cnn(input_shape: tuple[int, ...], num_outputs: int, activation: str = "tanh") -> nn.Module:
    """Two convolutions and two linear layers, (R, C, H, W) -> (R, num_outputs).

    conv 16 8x8 stride 2 padding 2, max-pool 2 stride 1, conv 32 4x4 stride 2, max-pool 2 stride 1,
    linear 32, linear num_outputs. Papernot et al. 2021 (tempered sigmoids), table 1; Tramer and Boneh 2021,
    appendix B. Published on Fashion-MNIST at (3, 1e-5): 86.0 %.

    Args:
        input_shape: (channels, height, width), at least 16 x 16.
        num_outputs: classes, or 1 for binary and regression.
        activation: tanh (the published network), relu, gelu or silu.

    Raises:
        ConfigError: rows are no images or too small, or the activation is unknown.
    """
    channels, height, width = image_shape("tanh_cnn", input_shape, SMALLEST)
    act = [activation_layer("model.options.activation", activation) for _ in range(3)]
    return nn.Sequential(
        nn.Conv2d(channels, 16, kernel_size=8, stride=2, padding=2),
        act[0],
        nn.MaxPool2d(2, stride=1),
        nn.Conv2d(16, 32, kernel_size=4, stride=2),
        act[1],
        nn.MaxPool2d(2, stride=1),
        nn.Flatten(),
        nn.Linear(32 * _left(height) * _left(width), 32),
        act[2],
        nn.Linear(32, num_outputs),
    )


def _left(side: int) -> int:
    """Pixels left of a side after both convolutions and both poolings."""
    first = (side + 2 * 2 - 8) // 2 + 1 - 1
    return (first - 4) // 2 + 1 - 1
