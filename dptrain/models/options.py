"""Refuses wrong options and input shapes of models and feature maps, in the words of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from dptrain.errors import ConfigError, suggest

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}
"""Activations by name. None works in place, which per-sample gradients would not survive."""


def whole_number(field: str, value: Any, low: int, high: int | None = None) -> int:
    """``value`` if it is an int in [low, high].

    Raises:
        ConfigError: naming ``field``.
    """
    allowed = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise ConfigError(field, value, f"must be {allowed}", "choose such a value")
    return value


def truth(field: str, value: Any) -> bool:
    """``value`` if it is true or false, else ConfigError."""
    if not isinstance(value, bool):
        raise ConfigError(field, value, "must be true or false", "choose one")
    return value


def activation(field: str, name: Any) -> nn.Module:
    """A new activation layer of that name, else ConfigError."""
    if name not in ACTIVATIONS:
        raise ConfigError(field, name, "is not one of " + ", ".join(ACTIVATIONS), suggest(str(name), ACTIVATIONS))
    return ACTIVATIONS[name]()


def whole_numbers(field: str, values: Any, low: int) -> list[int]:
    """``values`` as a list if each is an int of at least ``low``, else ConfigError."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ConfigError(field, values, "must be a list of whole numbers", "write it as [128,64]")
    return [whole_number(field, value, low) for value in values]


def image_shape(model: str, input_shape: tuple[int, ...], smallest: int) -> tuple[int, int, int]:
    """(channels, height, width) of a row that is an image of at least ``smallest`` x ``smallest``.

    Raises:
        ConfigError: the rows are no images, or too small; ``model`` is named.
    """
    remedy = "choose model=mlp or model=linear, which take rows of any shape"
    if len(input_shape) != 3:
        raise ConfigError("model", model, f"takes images (channels, height, width); rows are {input_shape}", remedy)
    channels, height, width = input_shape
    if min(height, width) < smallest:
        raise ConfigError(
            "model", model, f"takes images of at least {smallest} x {smallest}; rows are {height} x {width}", remedy
        )
    return channels, height, width
