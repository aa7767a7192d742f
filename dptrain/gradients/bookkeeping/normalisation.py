"""Layer, group, instance and RMS normalisation with trainable scale and shift."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dptrain.gradients.bookkeeping.seen import RowGradients, wide
from dptrain.gradients.bookkeeping.tape import Tape, is_parameter

ROW_BY_ROW = 4096
"""Values of a row from which, on a CPU, torch's own kernel called row by row beats one pass over all rows."""

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Record = Callable[[Tensor | None, Tensor | None], None]
aten = torch.ops.aten


def layer_norm_rule(tape: Tape, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """``F.layer_norm(input, normalized_shape, weight, bias, eps)``."""
    return _layer_norm(tape, *args, **kwargs)


def _layer_norm(
    tape: Tape, input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    if not _covered(weight, bias):
        return NotImplemented
    record = _recorder(tape, weight, bias)
    scale, shift = _values(weight, bias)
    shape = [int(size) for size in normalized_shape]

    def whole(anchor: Tensor, rows: Tensor) -> Tensor:
        return _LayerNorm.apply(wide(rows), shape, scale, shift, eps, _used(anchor, record), record)

    return tape.lift(whole, input)


def group_norm_rule(tape: Tape, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """``F.group_norm(input (1, C, ...), num_groups, weight, bias, eps)``."""
    return _group_norm(tape, *args, **kwargs)


def _group_norm(
    tape: Tape, input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    if not _covered(weight, bias) or input.dim() < 2:
        return NotImplemented
    record = _recorder(tape, weight, bias)
    scale, shift = _values(weight, bias)

    def whole(anchor: Tensor, rows: Tensor) -> Tensor:
        return _GroupNorm.apply(wide(rows), num_groups, scale, shift, eps, _used(anchor, record), record)

    return tape.lift(whole, input)


def instance_norm_rule(tape: Tape, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """``F.instance_norm`` without running statistics: a group norm with one channel a group."""
    return _instance_norm(tape, *args, **kwargs)


def _instance_norm(
    tape: Tape,
    input: Tensor,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if running_mean is not None or not use_input_stats:
        return NotImplemented
    return _group_norm(tape, input, input.shape[1], weight, bias, eps)


def rms_norm_rule(tape: Tape, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """``F.rms_norm(input, normalized_shape, weight, eps)``: normalised, then scaled by a copy of the weight a row."""
    return _rms_norm(tape, *args, **kwargs)


def _rms_norm(tape: Tape, input: Tensor, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    if tape.name_of(weight) is None:
        return NotImplemented
    normal = tape.copy_a_row(F.rms_norm, input, normalized_shape, None, eps)  # rows may be learned themselves
    return tape.copy_a_row(torch.mul, normal, weight)


def _covered(weight: Any, bias: Any) -> bool:
    return all(value is None or is_parameter(value) for value in (weight, bias))


def _values(weight: Any, bias: Any) -> tuple[Tensor | None, Tensor | None]:
    return None if weight is None else weight.detach(), None if bias is None else bias.detach()


def _recorder(tape: Tape, weight: Any, bias: Any) -> Record | None:
    """Enters gradients of rows (R, *shape) of scale and shift; None where neither is trained."""
    scale, shift = tape.open(weight), tape.open(bias)
    if scale is None and shift is None:
        return None

    def record(of_scale: Tensor | None, of_shift: Tensor | None) -> None:
        if scale is not None and of_scale is not None:
            tape.enter(scale, RowGradients(of_scale))
        if shift is not None and of_shift is not None:
            tape.enter(shift, RowGradients(of_shift))

    return record


def _used(anchor: Tensor, record: Record | None) -> Tensor:
    """The anchor where a gradient is to be recorded; without its history elsewhere, so that nobody walks back through a
    frozen part in front of which nothing is trained."""
    return anchor if record is not None else anchor.detach()


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shape: Any, scale: Any, shift: Any, eps: float, anchor: Tensor, record: Record | None
    ) -> Tensor:
        y, mean, rstd = torch.native_layer_norm(x, shape, scale, shift, eps)
        ctx.save_for_backward(x, mean, rstd, scale, shift)
        ctx.shape, ctx.record = shape, record
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, mean, rstd, scale, shift = ctx.saved_tensors
        g = grads[0].contiguous()
        x = x.contiguous()
        if ctx.record is not None:
            ctx.record(*_layer_norm_rows(g, x, mean, rstd, scale, shift, ctx.shape))
        dx = None
        if ctx.needs_input_grad[0]:
            dx = aten.native_layer_norm_backward(g, x, ctx.shape, mean, rstd, scale, shift, [True, False, False])[0]
        return dx, None, None, None, None, None, None


def _layer_norm_rows(
    g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, scale: Any, shift: Any, shape: list[int]
) -> tuple[Tensor | None, Tensor | None]:
    """(R, *shape) gradients of scale and shift."""
    has_shift = shift is not None
    if g.device.type == "cpu" and g[0].numel() >= ROW_BY_ROW:
        found = [
            aten.native_layer_norm_backward(g[r], x[r], shape, mean[r], rstd[r], scale, shift, [False, True, has_shift])
            for r in range(len(g))
        ]
        return torch.stack([f[1] for f in found]), torch.stack([f[2] for f in found]) if has_shift else None
    between = list(range(1, g.dim() - len(shape)))
    of_scale = g * ((x - mean) * rstd)
    return _sum(of_scale, between), _sum(g, between) if has_shift else None


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, groups: int, scale: Any, shift: Any, eps: float, anchor: Tensor, record: Record | None
    ) -> Tensor:
        flat = x.flatten(0, 1).contiguous()  # (R M, C, ...)
        count, channels, places = len(flat), flat.shape[1], math.prod(flat.shape[2:])
        y, mean, rstd = torch.native_group_norm(flat, scale, shift, count, channels, places, groups, eps)
        ctx.save_for_backward(flat, mean, rstd, scale)
        ctx.groups, ctx.record, ctx.rows = groups, record, x.shape[:2]
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, mean, rstd, scale = ctx.saved_tensors
        g = grads[0].reshape(x.shape).contiguous()
        count, channels, places = len(x), x.shape[1], math.prod(x.shape[2:])
        if ctx.record is not None:
            sums, products = _channel_sums(g, x)
            spread = channels // ctx.groups
            centre, width = mean.repeat_interleave(spread, 1), rstd.repeat_interleave(spread, 1)
            of_scale = (products - sums * centre) * width
            ctx.record(_sum(of_scale.unflatten(0, ctx.rows), [1]), _sum(sums.unflatten(0, ctx.rows), [1]))
        dx = None
        if ctx.needs_input_grad[0]:
            dx = aten.native_group_norm_backward(
                g, x, mean, rstd, scale, count, channels, places, ctx.groups, [True, False, False]
            )[0].view(grads[0].shape)
        return dx, None, None, None, None, None, None


def _channel_sums(g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C) sums over places of g, and of g x."""
    if g.dim() == 2:
        return g, g * x
    flat_g, flat_x = g.flatten(2), x.flatten(2)
    return flat_g.sum(2), (flat_g * flat_x).sum(2)


def _sum(values: Tensor, dims: list[int]) -> Tensor:
    return values.sum(dims) if dims else values
