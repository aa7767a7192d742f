"""Settings of ``dptrain export``."""

from __future__ import annotations

from dataclasses import dataclass

from dptrain.config_checkpoint import check_source
from dptrain.ranges import choice


@dataclass
class ExportConfig:
    """Root of ``dptrain export``."""

    run: str = "???"
    """A run folder, or its checkpoint/; it is verified first."""
    to: str = "hf"
    """hf (a folder that transformers or peft loads as it is), safetensors (weights with the statement in their
    metadata), mlflow (a folder that mlflow.pyfunc loads) or onnx (a graph; needs the extra onnx)."""
    into: str = "???"
    """The folder to write; must be absent or empty."""
    adapter: str = "merged"
    """hf, of a run with adapters: merged into the weights, or kept as a folder for peft beside the base."""
    tokenizer: str | None = None
    """hf: a folder whose tokenizer files are copied beside the model; null copies none."""
    key: str | None = None
    """Public key file of the one signer to accept; null: your own key and those that you trust."""
    sealing_key: str | None = None
    """Source of the key that opens sealed weights, as ``checkpoint.key``; null: your own."""

    def __post_init__(self) -> None:
        check_source("sealing_key", self.sealing_key)
        choice("to", self.to, ["hf", "safetensors", "mlflow", "onnx"])
        choice("adapter", self.adapter, ["merged", "kept"])
