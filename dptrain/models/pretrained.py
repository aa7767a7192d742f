"""Which models are read from a folder of weights, and how: described by values, filled from safetensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from dptrain.errors import ConfigError
from dptrain.models import efficientnet, hf, timm

Describe = Callable[[str, Mapping[str, Any]], dict[str, Any]]
"""(folder, the user's options) -> options that describe the model alone, without the folder."""
Fill = Callable[[nn.Module, str], None]
"""Puts the folder's weights into a module that was built from that description; its head stays."""


@dataclass(frozen=True)
class Loader:
    """How one kind of model is read."""

    describe: Describe
    fill: Fill
    digest: Callable[[str], str]


def _describe_hf(path: str, options: Mapping[str, Any]) -> dict[str, Any]:
    hf.weight_files(path)
    return {**options, "architecture": hf.read_architecture(path)}


LOADERS = {
    "hf": Loader(_describe_hf, hf.fill_from, hf.digest_of),
    "timm": Loader(timm.describe, efficientnet.fill_from, hf.digest_of),
    "efficientnet_lite0": Loader(efficientnet.describe, efficientnet.fill_from, hf.digest_of),
}


def loader_of(name: str, path: str | None, options: Mapping[str, Any] | None = None) -> Loader | None:
    """The loader of a registered model; None for models that begin at random, as one does whose options hold its
    whole architecture.

    Raises:
        ConfigError: a folder is needed and not given, or given and not needed.
    """
    loader = LOADERS.get(name)
    if path is None and "architecture" in (options or {}):
        return None
    if loader is not None and path is None:
        raise ConfigError(
            "model.path", "null", f"is needed by model={name}", "give a folder of weights on this machine"
        )
    if loader is None and path is not None:
        known = ", ".join(LOADERS)
        raise ConfigError("model.path", path, f"is not read by model '{name}'", f"choose one of {known}")
    return loader
