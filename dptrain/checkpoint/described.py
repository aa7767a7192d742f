"""From a bundle's model description to a module: plain data in bounds, and never more memory than its weights explain.

The description may be a stranger's. Its fields are checked before anything is built; the model is first built without
memory (torch's ``meta`` device) and its shapes are held against the weights at hand, so that a description of a
billion parameters costs nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dptrain.errors import ConfigError, DptrainError
from dptrain.models.build import ModelSpec, build_model
from dptrain.registry import features

LARGEST = 2**31
"""Of one dimension, and of the number of outputs."""
RESTORE = "restore the bundle from a copy"


def read_spec(described: dict[str, Any], file: Path) -> ModelSpec:
    """The description as a ``ModelSpec``.

    Args:
        described: content of ``model.json`` without its schema.
        file: where it lies, for the error.

    Raises:
        ConfigError: a field is missing, foreign, of another kind or out of bounds.
    """

    def sizes(value: Any) -> bool:
        return isinstance(value, list) and len(value) <= 8 and all(_size(item) for item in value)

    def texts(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)

    kinds = {
        "name": lambda value: isinstance(value, str),
        "options": lambda value: isinstance(value, dict),
        "features": lambda value: isinstance(value, str),
        "replace_batchnorm": lambda value: isinstance(value, bool),
        "raw_shape": sizes,
        "input_shape": sizes,
        "num_outputs": _size,
        "task": lambda value: isinstance(value, str),
        "class_names": texts,
    }
    if "ema" in described:
        kinds["ema"] = lambda value: isinstance(value, float) and 0 < value < 1
    for name in sorted({*described} ^ {*kinds}):
        what = f"lacks the field '{name}'" if name in kinds else f"has a foreign field '{name[:60]}'"
        raise ConfigError("checkpoint", file, what, RESTORE)
    for name, fits in kinds.items():
        if not fits(described[name]):
            raise ConfigError("checkpoint", file, f"its field '{name}' is {str(described[name])[:60]!r}", RESTORE)
    if described["features"] != "none":
        features.resolve(described["features"])
    return ModelSpec(**described)


def build_described(spec: ModelSpec, tensors: dict[str, Tensor], folder: Path) -> nn.Module:
    """The registered model with these weights; torch's random state is left as it was.

    Raises:
        ConfigError: no model can be built of the description, or the weights are not its own.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            sketch = _sketch(spec)
            if sketch is not None:
                _fit(sketch, tensors, folder)
            module = build_model(spec)
        except DptrainError:
            raise
        except Exception as error:  # the description may be anything, and so may what the builder says of it
            problem = f"describes a model that cannot be built ({type(error).__name__}: {error})"
            raise ConfigError("checkpoint", folder / "model.json", problem, RESTORE) from error
    _fill(module, tensors, folder)
    return module


def _sketch(spec: ModelSpec) -> nn.Module | None:
    """The model without memory; None where a user's own builder needs numbers and cannot do without."""
    try:
        with torch.device("meta"):
            return build_model(spec)
    except (NotImplementedError, RuntimeError) as error:
        if "meta" in str(error):
            return None
        raise


def _fit(sketch: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Refuses weights whose names or shapes are not the model's."""
    wanted = {name: tuple(value.shape) for name, value in sketch.state_dict().items()}
    for name, value in tensors.items():
        if wanted.get(name) != tuple(value.shape):
            problem = f"holds '{name[:60]}' of shape {tuple(value.shape)}; the model has {wanted.get(name)}"
            raise _foreign(folder, problem)
    largest = sum(value.numel() for value in tensors.values())
    for name in wanted.keys() - tensors.keys():  # tied parameters are kept once, so their shape is there already
        if wanted[name] not in {tuple(value.shape) for value in tensors.values()}:
            raise _foreign(folder, f"lacks '{name}'")
    if sum(parameter.numel() for parameter in sketch.parameters()) > largest:
        raise _foreign(folder, "holds fewer numbers than the model has")


def _fill(module: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    try:
        missing, unexpected = module.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise _foreign(folder, f"does not hold this model's weights ({error})") from error
    own = module.state_dict(keep_vars=True)
    given = {own[name].data_ptr() for name in tensors if name in own}
    left = [name for name in missing if own[name].numel() and own[name].data_ptr() not in given]
    if left or unexpected:
        raise _foreign(folder, f"lacks '{left[0]}'" if left else f"holds '{unexpected[0]}', which the model has not")


def _size(value: Any) -> bool:
    return type(value) is int and 1 <= value < LARGEST


def _foreign(folder: Path, problem: str) -> ConfigError:
    return ConfigError("checkpoint", folder / "model.safetensors", problem, RESTORE)
