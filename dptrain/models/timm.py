"""Picture models of ``timm`` from a folder on this machine: ``config.json`` names the architecture.

Batch statistics are fixed (``models/fixed_norm.py``, timm's own frozen form where a norm carries its activation), so
that rows stay apart. timm is no dependency of dptrain: it is imported when it is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dptrain.errors import ConfigError
from dptrain.models.efficientnet import ImageClassifier
from dptrain.models.fixed_norm import fix_batchnorm
from dptrain.models.hf import weight_files
from dptrain.models.options import image_shape, truth, whole_number
from dptrain.registry import models
from dptrain.untrusted_json import NotReadable, read_untrusted


def library() -> Any:
    """The module ``timm``.

    Raises:
        ConfigError: it, or torchvision that it needs, cannot be imported.
    """
    try:
        import timm  # pyright: ignore[reportMissingImports]
    except Exception as error:  # torchvision of another torch raises RuntimeError
        problem = f"needs timm, which cannot be imported ({type(error).__name__}: {str(error)[:200]})"
        raise ConfigError(
            "model", "timm", problem, "pip install timm torchvision, or model=efficientnet_lite0"
        ) from error
    return timm


@models.register("timm")
def timm_model(
    input_shape: tuple[int, ...],
    num_outputs: int,
    architecture: str | None = None,
    size: int = 224,
    normalise: bool = False,
    zero_init: bool = False,
) -> nn.Module:
    """A network of timm with random weights, (R, 1 or 3, H, W) in [0, 1] -> (R, num_outputs).

    Args:
        input_shape: of a picture.
        num_outputs: classes, or 1 for binary and regression.
        architecture: timm's name of it; taken from ``model.path`` where one is given.
        size: side to which pictures are brought, in [32, 512].
        normalise: bring features to length 1.
        zero_init: start the linear layer at zero.

    Raises:
        ConfigError: timm cannot be imported or does not know the name, or an option is outside its range.
    """
    if architecture is None:
        raise ConfigError("model.path", "null", "is needed by model=timm", "give a folder with config.json and weights")
    image_shape("timm", input_shape, smallest=8)
    whole_number("model.options.size", size, low=32, high=512)
    known = library()
    if not re.fullmatch(r"[A-Za-z0-9_.]{1,100}", architecture) or architecture.split(".")[0] not in known.list_models():
        raise ConfigError(
            "model.options.architecture", architecture[:100], "is no model of timm", "see timm.list_models()"
        )
    body = known.create_model(architecture.split(".")[0], pretrained=False, num_classes=0, in_chans=3)
    fix_batchnorm(body)
    body = known.utils.freeze_batch_norm_2d(body)
    head = nn.Linear(body.num_features, num_outputs)
    if truth("model.options.zero_init", zero_init):
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    return ImageClassifier(body, head, size, truth("model.options.normalise", normalise))


def describe(path: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with the architecture that the folder's config names.

    Raises:
        ConfigError: there are no safetensors, or no config that names an architecture.
    """
    weight_files(path)
    file = Path(path).expanduser() / "config.json"
    try:
        given = read_untrusted(file)
    except NotReadable as error:
        raise ConfigError("model.path", file, str(error), "give a folder as timm writes it") from error
    name = given.get("architecture") if isinstance(given, dict) else None
    if not isinstance(name, str):
        raise ConfigError("model.path", file, "names no architecture", "give a folder as timm writes it")
    return {**options, "architecture": name}
