"""What to tell the user when a model cannot be run row by row."""

from __future__ import annotations

import torch

from dptrain.errors import ConfigError


def vmap_refusal(error: RuntimeError, engine: str, autocast: torch.dtype | None) -> ConfigError | None:
    """The error to show when the model, not the machine, is what vmap stumbled over."""
    text = str(error)
    reason = text.strip().split(". ")[0].splitlines()[0][:200]
    if autocast is not None and "expected scalar type" in text:
        # torch 2.13: vmap's rule for LayerNorm's backward does not mix dtypes on a CPU.
        return ConfigError(
            "execution.dtype",
            str(autocast).removeprefix("torch."),
            f"a layer cannot mix dtypes under vmap ({reason})",
            "set execution.dtype=float32 or clipping.engine=opacus_hooks",
        )
    if not any(
        word in text
        for word in (
            "vmap",
            "functorch",
            "torch.func",
            "batching rule",
            "Batching rule",
            "is_contiguous(memory_format)",
        )
    ):
        return None
    return ConfigError(
        "clipping.engine",
        engine,
        f"the model cannot be run row by row under vmap ({reason})",
        "set clipping.engine=opacus_hooks or clipping.engine=loop, or replace the layer",
    )
