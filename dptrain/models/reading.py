"""What a model reads: numbers in its own format, or ids of tokens."""

from __future__ import annotations

from torch import Tensor, nn


def takes_ids(module: nn.Module) -> bool:
    """Whether rows are ids of tokens, which the model says of itself (``takes_ids = True``)."""
    return bool(getattr(module, "takes_ids", False))


def as_read(module: nn.Module, rows: Tensor) -> Tensor:
    """Rows in the format in which this model reads them: whole numbers, or that of its first parameter."""
    return rows.long() if takes_ids(module) else rows.to(next(module.parameters()).dtype)
