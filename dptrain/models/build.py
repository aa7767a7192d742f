"""From names to a module: what a bundle stores about its model, and how it is built again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from dptrain.errors import ConfigError
from dptrain.registry import models


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything needed to build the module and read its outputs; plain data, public facts only."""

    name: str
    """A registered model."""
    options: dict[str, Any] = field(default_factory=dict)
    features: str = "none"
    """Fixed map applied to raw inputs first."""
    replace_batchnorm: bool = False
    raw_shape: tuple[int, ...]
    """Shape of one row before the feature map."""
    input_shape: tuple[int, ...]
    """Shape of one row as the module takes it."""
    num_outputs: int
    task: str
    class_names: tuple[str, ...] = ()
    ema: float = 0.0
    """Decay of the moving average that the weights are; 0: they are those of the last or the best step."""

    def to_json(self) -> dict[str, Any]:
        """Plain data; a field that says nothing new is left out, so that earlier releases read what they can."""
        return {name: value for name, value in asdict(self).items() if name != "ema" or value}

    def __post_init__(self) -> None:
        # JSON gives lists; a spec read back must equal the one written.
        for name in ("raw_shape", "input_shape", "class_names"):
            object.__setattr__(self, name, tuple(getattr(self, name)))


def build_model(spec: ModelSpec) -> nn.Module:
    """Builds the registered model; the caller fixes torch's seed.

    Raises:
        ConfigError: unknown name or option, or the builder does not give a module.
    """
    module = models.build(spec.name, spec.input_shape, spec.num_outputs, options=spec.options)
    if not isinstance(module, nn.Module):
        raise ConfigError("model", spec.name, f"its function gave {type(module).__name__}", "return a torch.nn.Module")
    if spec.replace_batchnorm:
        from dptrain.models.validate import replace_batchnorm

        replace_batchnorm(module)
    return module
