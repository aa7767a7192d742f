"""Linear maps: ``F.linear``, ``addmm`` and matrix products with a trainable matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dptrain.gradients.bookkeeping.seen import RowGradients, Tokens, wide
from dptrain.gradients.bookkeeping.tape import Tape, cast_inputs, is_parameter

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def linear_rule(tape: Tape, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """``F.linear(input (..., d), weight (p, d), bias (p,) or None)``."""
    return _linear(tape, *_linear_arguments(*args, **kwargs))


def _linear_arguments(input: Tensor, weight: Any, bias: Any = None) -> tuple[Tensor, Any, Any]:
    return input, weight, bias


def addmm_rule(tape: Tape, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """``torch.addmm(bias (p,), input (n, d), matrix (d, p))``: a linear map with its weight turned."""
    if kwargs or len(args) != 3:
        return NotImplemented
    bias, x, matrix = args
    return _linear(tape, x, matrix, bias, turned=True) if isinstance(bias, nn.Parameter) else NotImplemented


def matmul_rule(tape: Tape, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """``input @ matrix`` with a trainable matrix (d, p) on the right."""
    if kwargs or len(args) != 2 or not isinstance(args[0], Tensor) or args[0].dim() < 2:
        return NotImplemented
    return _linear(tape, args[0], args[1], None, turned=True)


def _linear(tape: Tape, x: Tensor, weight: Any, bias: Any, turned: bool = False) -> Any:
    """Runs x W' + b on all rows; ``turned`` says that ``weight`` is W', not W."""
    matrix = tape.turned(weight)
    turned, matrix = (not turned, matrix) if matrix is not None else (turned, weight)
    if not is_parameter(matrix) or matrix.dim() != 2 or tape.reads_parameter([x]):
        return NotImplemented
    if bias is not None and not is_parameter(bias):  # part of a bias, say: a value of every row by now
        return _linear(tape, x, weight, None, turned) + bias
    if bias is not None and bias.shape != matrix.shape[1 if turned else 0 :][:1]:
        return NotImplemented  # one number for all outputs, or a bias of every token: addmm takes both
    x, value, offset = cast_inputs(x, matrix.detach(), None if bias is None else bias.detach())
    record = LinearRecord(tape, tape.open(matrix), tape.open(bias), turned)
    if record.weight is None and record.bias is None:
        value = value.t() if turned else value
        return tape.lift(lambda anchor, rows: F.linear(rows, value, offset), x)
    return tape.lift(
        lambda anchor, rows: _Linear.apply(rows, value.t() if turned else value, offset, anchor, record), x
    )


def linear_part(tape: Tape, x: Tensor, weight: nn.Parameter, bias: nn.Parameter | None, part: slice) -> Tensor:
    """A map by some rows of a weight (p, d) and its bias (p,), as attention's packed projections are used."""
    x, value, offset = cast_inputs(x, weight.detach(), None if bias is None else bias.detach())
    record = LinearRecord(tape, tape.open(weight), tape.open(bias), False, (part, len(weight)))

    def whole(anchor: Tensor, rows: Tensor) -> Tensor:
        return _Linear.apply(rows, value[part], None if offset is None else offset[part], anchor, record)

    return tape.lift(whole, x)


@dataclass(frozen=True)
class LinearRecord:
    """Takes what one linear map saw, and enters its contributions."""

    tape: Tape
    weight: str | None
    bias: str | None
    turned: bool
    part: tuple[slice, int] | None = None  # which of how many outputs the map has, where it has not all

    def enter(self, x: Tensor, g: Tensor) -> None:
        """x: (R, ..., d) inputs; g: (R, ..., p) gradients of outputs."""
        g = g.reshape(len(g), -1, g.shape[-1])
        if self.part is not None:
            whole = g.new_zeros((*g.shape[:2], self.part[1]))
            whole[:, :, self.part[0]] = g
            g = whole
        if self.bias is not None:
            self.tape.enter(self.bias, RowGradients(g[:, 0] if g.shape[1] == 1 else wide(g).sum(1)))
        if self.weight is not None:
            a = x.reshape(len(x), -1, x.shape[-1])
            self.tape.enter(self.weight, Tokens.of_rows(self.tape.groups, wide(a), wide(g), self.turned))


class _Linear(torch.autograd.Function):
    """F.linear that leaves no gradient of the weight but a record."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, anchor: Tensor, record: LinearRecord
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.record = record
        out = F.linear(x, weight, bias)
        # Not a view of itself, as torch may give: layers after this one may write into it.
        return torch.ops.aten._unsafe_view(out, out.shape) if out._is_view() else out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        x, weight = ctx.saved_tensors
        ctx.record.enter(x, grads[0])
        return grads[0] @ weight if ctx.needs_input_grad[0] else None, None, None, None, None
