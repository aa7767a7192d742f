"""What a frozen body makes of rows, computed once and cached: a linear probe then trains at the cost of its head."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dptrain.errors import ConfigError
from dptrain.models.features import cached_map


class FrozenBody:
    """The body of a model as a fixed map of rows: each row by itself, by weights that nothing private went into.

    A start that was itself trained privately is a fixed map as well: what it released is released.

    Args:
        module: has ``mapped`` and ``head``; in evaluation mode from here on, as long as it maps.
        row: one row (1, *input_shape), of made-up content, to learn the shape of features.
    """

    def __init__(self, module: nn.Module, row: Tensor) -> None:
        if not hasattr(module, "mapped") or getattr(module, "head", None) is None:
            raise ConfigError(
                "finetune.train",
                "probe",
                f"{type(module).__name__} has no features that could be computed once",
                "set finetune.train=head",
            )
        self._module: Any = module
        self.version = _digest(module)
        self.output_shape = tuple(self(row).shape[1:])

    def __call__(self, inputs: Tensor) -> Tensor:  # (N, *input_shape) -> (N, F)
        device = next(self._module.parameters()).device
        was_training = self._module.training
        self._module.eval()
        try:
            with torch.no_grad():
                return self._module.mapped(inputs.to(device)).cpu()
        finally:
            self._module.train(was_training)


def frozen_features(body: FrozenBody, inputs: Tensor, cache_dir: Path | None) -> Tensor:
    """(N, *input_shape) -> (N, F), from the cache where it holds them: named by digests of rows and of weights."""
    return cached_map("body", body, inputs, cache_dir)


def _digest(module: nn.Module) -> str:
    """SHA-256 of everything but the head that decides what ``mapped`` gives."""
    whole = hashlib.sha256(f"{type(module).__name__} {torch.__version__}".encode())
    for name in ("pad", "pooling", "causal", "normalise", "layers", "size", "mean", "std"):
        whole.update(f" {name}={getattr(module, name, None)}".encode())
    whole.update(repr(getattr(getattr(module, "body", None), "config", "")).encode())
    for name, value in module.state_dict().items():
        if not name.startswith("head."):
            plain = value.detach().cpu().contiguous().reshape(-1)
            whole.update(name.encode() + bytes(plain.view(torch.uint8).numpy().data))
    return whole.hexdigest()
