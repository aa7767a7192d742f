"""Weights of others (.bin, .pth) as safetensors, the one form that dptrain reads; no code of the file is run.

dptrain convert weights=mine/pytorch_model.bin
dptrain convert weights=checkpoint.pth part=state_dict strip=module. into=mine/model.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from dptrain.cli import guarded
from dptrain.config_convert import ConvertConfig
from dptrain.launch import launch


def run(config: ConvertConfig) -> dict[str, Any]:
    """Reads tensors, writes them; returns {"weights", "read_sha256", "into", "written_sha256", "tensors", "numbers"}.

    Raises:
        ConfigError: the file holds anything but a flat table of tensors, or ``into`` is there. Nothing was written.
    """
    from dptrain.checkpoint.foreign_weights import read_foreign, write_new
    from dptrain.tracking.console import summary

    weights = Path(config.weights).expanduser().absolute()
    kept = "adapter_model" if weights.stem == "adapter_model" else "model"
    into = Path(config.into).expanduser().absolute() if config.into else weights.with_name(f"{kept}.safetensors")

    # 1. Tensors, out of exactly the bytes whose digest is told.
    tensors, read = read_foreign(weights, config.part, config.strip, into)

    # 2. A new file, whole or not at all.
    written = write_new(into, tensors, read)
    numbers = sum(tensor.numel() for tensor in tensors.values())
    summary(
        [
            ("read", f"{weights}  sha256:{read}"),
            ("written", f"{into}  sha256:{written}"),
            ("holds", f"{len(tensors):,} tensors, {numbers:,} numbers"),
            ("promise", "none: these are weights of others, taken as public"),
        ]
    )
    found = {"weights": str(weights), "read_sha256": read, "into": str(into), "written_sha256": written}
    return {**found, "tensors": len(tensors), "numbers": numbers}


def main(arguments: list[str]) -> None:
    """Entry of ``dptrain convert``."""
    launch("convert", arguments)


if __name__ == "__main__":
    sys.exit(guarded("convert", sys.argv[1:]))
