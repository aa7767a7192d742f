"""Refuses a model that would break the promise: one that mixes units, keeps state, or cannot be trained."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from dptrain.errors import ConfigError
from dptrain.models.probe import probe

MAX_GROUPS = 32
"""Most groups of a GroupNorm that replaces a BatchNorm."""
MIN_FLAT = 8
"""Fewest channels in a group that replaces BatchNorm1d, whose rows may be flat: a group of one value would
always be normalised to zero."""


def check_model(module: nn.Module, name: str, input_shape: tuple[int, ...], num_outputs: int) -> None:
    """Refuses a model whose rows do not stay apart. Reads no data: it is probed on made-up rows.

    Guarantee: a layer known to mix units (BatchNorm of any kind; InstanceNorm that tracks statistics) is
    refused by name. Any other mixing is refused if it shows on the probe's rows beyond float tolerance (see
    ``dptrain.models.probe``); that is evidence, not proof, for a layer made to hide it.

    The module, its modes and every random state are left as they were.

    Args:
        module: the model, as it will be trained.
        name: its registered name, for messages.
        input_shape: shape of one row.
        num_outputs: expected width of the output.

    Raises:
        ConfigError: with the layer's or buffer's name, what is wrong and what to do.
    """
    _check_parameters(module, name)
    modes = [(layer, layer.training) for layer in module.modules()]
    try:
        module.train()
        _check_layers(module, name)
        probe(module, name, tuple(input_shape), num_outputs)
    finally:
        for layer, training in modes:
            layer.training = training


def replace_batchnorm(module: nn.Module) -> list[str]:
    """Puts a GroupNorm where the model has a BatchNorm, in place; returns the names replaced.

    The group count is the largest of at most 32 that divides the channels; for BatchNorm1d, whose rows may be
    flat, it also leaves at least 8 channels a group (or makes one group). Affine weights are kept; running
    statistics are dropped. Lazy layers, whose channels are unknown, are left for ``check_model`` to refuse.

    Raises:
        ConfigError: the model itself is a BatchNorm.
    """
    if isinstance(module, _BatchNorm):
        raise ConfigError(
            "model.replace_batchnorm", "true", "the model itself is a BatchNorm", "wrap it in a model that has more"
        )
    made: dict[_BatchNorm, nn.GroupNorm] = {}
    replaced = []
    for name, layer in list(module.named_modules(remove_duplicate=False)):
        if not isinstance(layer, _BatchNorm) or layer.num_features == 0:
            continue
        if layer not in made:
            made[layer] = _group_norm(layer)
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, made[layer])
        replaced.append(name)
    return replaced


def _group_norm(layer: _BatchNorm) -> nn.GroupNorm:
    channels = layer.num_features
    fewest = min(MIN_FLAT, channels) if isinstance(layer, nn.BatchNorm1d) else 1
    groups = max(g for g in range(1, MAX_GROUPS + 1) if channels % g == 0 and (g == 1 or channels // g >= fewest))
    norm = nn.GroupNorm(groups, channels, eps=layer.eps, affine=layer.affine)
    if layer.affine:
        # The same parameters: values, dtype, device and whether they are trained stay.
        norm.weight, norm.bias = layer.weight, layer.bias
    return norm.train(layer.training)


def _check_parameters(module: nn.Module, name: str) -> None:
    for key, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if is_lazy(tensor):
            raise ConfigError(
                "model", name, f"'{key}' has no shape yet (a Lazy layer)", "give the layer its input size explicitly"
            )
    trained = {key: p for key, p in module.named_parameters() if p.requires_grad}
    if not trained:
        raise ConfigError("model", name, "has no trainable parameter", "leave requires_grad on where it should learn")
    for key, parameter in module.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ConfigError("model", name, f"parameter '{key}' is not finite at the start", "mend its initialisation")


def _check_layers(module: nn.Module, name: str) -> None:
    for key, layer in module.named_modules():
        place = f"layer '{key}' ({type(layer).__name__})" if key else f"the model itself ({type(layer).__name__})"
        # A BatchNorm that stays in evaluation mode under train() and has statistics of its own is a fixed map.
        if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
            raise ConfigError(
                "model",
                name,
                f"{place} mixes units",
                "set model.replace_batchnorm=true, which puts GroupNorm in its place",
            )
        if isinstance(layer, _InstanceNorm) and layer.track_running_stats and layer.training:
            raise ConfigError(
                "model", name, f"{place} keeps running statistics of the rows", "set its track_running_stats=False"
            )
