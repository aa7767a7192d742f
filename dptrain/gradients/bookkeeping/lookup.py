"""Embeddings: rows of a trainable table, by number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dptrain.errors import ConfigError
from dptrain.gradients.bookkeeping.seen import Lookups, wide
from dptrain.gradients.bookkeeping.tape import Tape, is_parameter


def embedding_rule(tape: Tape, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``F.embedding(input (..., L) int, weight (V, d), padding_idx, max_norm, ...)``."""
    return _embedding(tape, *args, **kwargs)


def _embedding(
    tape: Tape,
    input: Tensor,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    name = tape.name_of(weight)
    if max_norm is not None or (name is not None and scale_grad_by_freq):
        raise ConfigError(
            "model",
            "Embedding",
            "renormalises its table or scales its gradient by counts of the batch, which ties rows together",
            "leave max_norm and scale_grad_by_freq unset",
        )
    if not is_parameter(weight):
        return NotImplemented
    table = weight.detach()
    if name is None:
        return tape.lift(lambda anchor, ids: F.embedding(ids, table), input)
    tape.open(weight)
    if padding_idx is not None and padding_idx < 0:
        padding_idx += len(table)

    def record(ids: Tensor, g: Tensor) -> None:
        groups, length = tape.groups, ids[0].numel()
        rows = groups.gather(ids.reshape(len(ids), length)).flatten(1, 2)
        found = groups.gather(wide(g).reshape(len(g), length, -1)).flatten(1, 2)
        tape.enter(name, Lookups(rows, found, len(table), padding_idx))

    return tape.lift(lambda anchor, ids: _Lookup.apply(ids, table, anchor, record), input)


class _Lookup(torch.autograd.Function):
    """F.embedding that leaves no gradient of the table but a record."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, table: Tensor, anchor: Tensor, record: Any) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.record = record
        return F.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None, None]:
        ctx.record(ctx.saved_tensors[0], grads[0])
        return None, None, None, None
