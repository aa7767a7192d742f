"""Settings of ``dptrain convert``."""

from __future__ import annotations

from dataclasses import dataclass

from dptrain.errors import ConfigError


@dataclass
class ConvertConfig:
    """Root of ``dptrain convert``."""

    weights: str = "???"
    """The file that ``torch.save`` wrote (.bin, .pth, .pt, .ckpt); it is read by torch's unpickler of tensors alone."""
    into: str | None = None
    """The file to write, ending in .safetensors, never one that is there; null: model.safetensors beside ``weights``
    (adapter_model.safetensors for an adapter_model)."""
    part: str | None = None
    """Name of the entry that holds the tensors, where the file holds more than them (``state_dict``, ``model``)."""
    strip: str = ""
    """Letters that every tensor's name begins with and that are taken off (``module.``)."""

    def __post_init__(self) -> None:
        if self.into is not None and not self.into.endswith(".safetensors"):
            raise ConfigError("into", self.into, "is no name of a safetensors file", "let it end in .safetensors")
