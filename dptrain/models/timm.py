"""Picture models of ``timm`` from a folder on this machine: ``config.json`` names the architecture.

Batch statistics are fixed (``models/fixed_norm.py``, timm's own frozen form where a norm carries its activation), so
that rows stay apart. Pictures are brought to the mean and spread that the weights were made with, which timm writes
into ``config.json`` (``pretrained_cfg``). timm is no dependency of dptrain: it is imported when it is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
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

HALF = (0.5, 0.5, 0.5)


def library() -> Any:
    """The module ``timm``.

    Raises:
        ConfigError: it, or torchvision that it needs, cannot be imported.
    """
    try:
        import timm  # pyright: ignore[reportMissingImports]
    except Exception as error:  # torchvision of another torch raises RuntimeError
        problem = f"needs timm, which cannot be imported ({type(error).__name__}: {str(error)[:200]})"
        remedy = "pip install timm, and the torchvision of the same build as your torch; or model=efficientnet_lite0"
        raise ConfigError("model", "timm", problem, remedy) from error
    return timm


@models.register("timm")
def timm_model(
    input_shape: tuple[int, ...],
    num_outputs: int,
    architecture: str | None = None,
    size: int = 224,
    normalise: bool = False,
    zero_init: bool = False,
    mean: Sequence[float] = HALF,
    std: Sequence[float] = HALF,
) -> nn.Module:
    """A network of timm with random weights, (R, 1 or 3, H, W) in [0, 1] -> (R, num_outputs).

    Args:
        input_shape: of a picture.
        num_outputs: classes, or 1 for binary and regression.
        architecture: timm's name of it; taken from ``model.path`` where one is given.
        size: side to which pictures are brought, in [32, 512].
        normalise: bring features to length 1.
        zero_init: start the linear layer at zero.
        mean, std: what is taken off each of three channels in [0, 1], and by what the rest is divided; taken from
            ``model.path`` where its config says it.

    Raises:
        ConfigError: timm cannot be imported or does not know the name, rows are no pictures of one or three channels,
            or an option is outside its range.
    """
    if architecture is None:
        raise ConfigError("model.path", "null", "is needed by model=timm", "give a folder with config.json and weights")
    channels, _, _ = image_shape("timm", input_shape, smallest=8)
    if channels not in (1, 3):
        problem = f"takes pictures of 1 or 3 channels; rows have {channels}"
        raise ConfigError("model", "timm", problem, "choose model=wrn")
    whole_number("model.options.size", size, low=32, high=512)
    known = library()
    if not re.fullmatch(r"[A-Za-z0-9_.]{1,100}", architecture) or architecture.split(".")[0] not in known.list_models():
        raise ConfigError(
            "model.options.architecture", architecture[:100], "is no model of timm", "see timm.list_models()"
        )
    body = known.create_model(architecture.split(".")[0], pretrained=False, num_classes=0, in_chans=3)
    fix_batchnorm(body)
    body = _freezer(known)(body)
    width: Any = getattr(body, "head_hidden_size", body.num_features)
    head = nn.Linear(width, num_outputs)
    if truth("model.options.zero_init", zero_init):
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    shift, spread = three("model.options.mean", mean, 0.0), three("model.options.std", std, 1e-3)
    return ImageClassifier(body, head, size, truth("model.options.normalise", normalise), shift, spread)


def _freezer(known: Any) -> Callable[[nn.Module], nn.Module]:
    """timm's own function that fixes the statistics of every batch norm; its place changed between versions."""
    for place in ("layers", "utils"):
        found = getattr(getattr(known, place, None), "freeze_batch_norm_2d", None)
        if found is not None:
            return found
    problem = f"timm {known.__version__} has no freeze_batch_norm_2d, which keeps rows apart"
    raise ConfigError("model", "timm", problem, "install timm 1.0.31")


def three(field: str, values: Any, least: float) -> tuple[float, float, float]:
    """Three numbers in [least, 1].

    Raises:
        ConfigError: they are not.
    """
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise ConfigError(field, values, "is not three numbers", "one for each colour, in [0, 1]") from error
    if not all(least <= value <= 1.0 for value in (red, green, blue)):
        raise ConfigError(field, values, f"is outside [{least:g}, 1]", "one for each colour, of pictures in [0, 1]")
    return red, green, blue


def describe(path: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with the architecture that the folder's config names, and mean and std where it says them.

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
    made = given.get("pretrained_cfg")
    told = {key: made[key] for key in ("mean", "std") if key in made} if isinstance(made, dict) else {}
    for key, value in told.items():
        try:
            told[key] = list(three(key, value, 0.0))
        except ConfigError as error:
            raise ConfigError(
                "model.path", file, f"its {key} is not three numbers in [0, 1]", "save it anew"
            ) from error
    return {**told, **options, "architecture": name}
