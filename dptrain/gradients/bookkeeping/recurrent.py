"""Recurrent layers: torch's LSTM, GRU and RNN, and their single cells.

Over time a layer uses its two matrices T times each. Seen together these are two linear maps with T tokens, of the
inputs x_t and of the states h_(t-1), whose output gradients come from one pass backwards through time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dptrain.errors import ConfigError
from dptrain.gradients.bookkeeping.cells import CELLS, Cell, Kept
from dptrain.gradients.bookkeeping.linear import LinearRecord
from dptrain.gradients.bookkeeping.tape import Tape, cast_inputs, is_parameter

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def recurrent_rule(tape: Tape, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """``torch.lstm(input, (h, c), weights, ...)``; ``torch.gru`` and ``rnn_*`` have h alone.

    Raises:
        ConfigError: packed sequences, or projected states.
    """
    if kwargs or not isinstance(args[2], list | tuple):
        return packed_rule(tape, func, args, kwargs)
    input, state, weights, has_bias, layers, dropout, training, both_ways, batch_first = args
    ways = 2 if both_ways else 1
    if len(weights) != layers * ways * (4 if has_bias else 2):
        raise ConfigError("model", func.__name__, "projects its state (proj_size)", "set proj_size=0")
    if not all(is_parameter(w) for w in weights):
        return NotImplemented
    h0, c0 = state if func.__name__ == "lstm" else (state, torch.zeros_like(state))
    input, h0, c0 = (tape.copy_a_row(_same, value) for value in (input, h0, c0))
    size = 4 if has_bias else 2
    x = input if batch_first else input.transpose(0, 1)  # (M, T, d)
    last_h: list[Tensor] = []
    last_c: list[Tensor] = []
    for layer in range(layers):
        outputs = []
        for way in range(ways):
            at = layer * ways + way
            run = _Layer(tape, CELLS[func.__name__], weights[at * size : (at + 1) * size])
            out, c = run(x.flip(1) if way else x, h0[at], c0[at])
            outputs.append(out.flip(1) if way else out)
            last_h.append(out[:, -1])
            last_c.append(c)
        x = torch.cat(outputs, 2) if both_ways else outputs[0]
        if dropout and training and layer + 1 < layers:
            x = F.dropout(x, dropout)
    out = x if batch_first else x.transpose(0, 1)
    if func.__name__ == "lstm":
        return out, torch.stack(last_h), torch.stack(last_c)
    return out, torch.stack(last_h)


def packed_rule(tape: Tape, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Packed sequences: no tensor of theirs has a dimension of rows."""
    raise ConfigError(
        "model",
        func.__name__,
        "packs sequences of many rows into one tensor",
        "give the layer padded sequences, and leave the padding out of the loss",
    )


def cell_rule(tape: Tape, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """``torch.lstm_cell(input (M, d), (h, c), w_ih, w_hh, b_ih, b_hh)``; the other cells have h alone."""
    input, state, w_ih, w_hh = args[:4]
    b_ih, b_hh = args[4:] if len(args) > 4 else (None, None)
    h, c = state if func.__name__ == "lstm_cell" else (state, state)
    h, c = tape.copy_a_row(_same, h), tape.copy_a_row(_same, c)
    with tape:
        zi, zh = F.linear(input, w_ih, b_ih), F.linear(h, w_hh, b_hh)
    if func.__name__ == "lstm_cell":
        i, f, g, o = (zi + zh).chunk(4, 1)
        new = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * new.tanh(), new
    if func.__name__ == "gru_cell":
        (ri, zi, ni), (rh, zh, nh) = zi.chunk(3, 1), zh.chunk(3, 1)
        n = (ni + (ri + rh).sigmoid() * nh).tanh()
        return torch.lerp(n, h, (zi + zh).sigmoid())
    return (zi + zh).relu() if func.__name__ == "rnn_relu_cell" else (zi + zh).tanh()


def _same(value: Tensor) -> Tensor:
    return value


class _Layer:
    """One layer in one direction, with its uses of weights noted."""

    def __init__(self, tape: Tape, cell: Cell, weights: Any) -> None:
        w_ih, w_hh, b_ih, b_hh = weights if len(weights) == 4 else (*weights, None, None)
        self.tape = tape
        self.cell = cell
        self.inputs = LinearRecord(tape, tape.open(w_ih), tape.open(b_ih), turned=False)
        self.states = LinearRecord(tape, tape.open(w_hh), tape.open(b_hh), turned=False)
        self.weights = tuple(None if w is None else w.detach() for w in (w_ih, w_hh, b_ih, b_hh))

    def __call__(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """x (M, T, d), h and c (M, H) of one row -> states (M, T, H) and the last c (M, H)."""
        x, *weights = cast_inputs(x, *self.weights)

        def whole(anchor: Tensor, *rows: Tensor) -> Tensor:
            flat = [value.flatten(0, 1) for value in rows]
            out = _Unrolled.apply(*flat, *weights, anchor, self)
            return out.unflatten(0, rows[0].shape[:2])

        out = self.tape.lift(whole, x, h, c)  # (M, T + 1, H): states, and the last c
        return out[:, :-1], out[:, -1]

    def enter(self, x: Tensor, h: Tensor, of_zi: Tensor, of_zh: Tensor) -> None:
        """Inputs and states (N, T, ·), and gradients of their linear maps (N, T, gates H)."""
        rows = self.tape.num_rows
        x, h, of_zi, of_zh = (value.reshape(rows, -1, value.shape[-1]) for value in (x, h, of_zi, of_zh))
        self.inputs.enter(x, of_zi)
        self.states.enter(h, of_zh)


class _Unrolled(torch.autograd.Function):
    """A layer unrolled over time on N rows; leaves no gradients of weights but a record."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Any, b_hh: Any,
        anchor: Tensor, layer: _Layer,
    ) -> Tensor:  # fmt: skip
        count, length = x.shape[:2]
        zi = F.linear(x, w_ih, b_ih)
        states = h.new_empty((count, length + 1, h.shape[1]))
        states[:, 0] = h
        kept: list[Kept] = []
        for t in range(length):
            zh = F.linear(h.to(w_hh.dtype), w_hh, b_hh)
            h, c, needed = layer.cell.forward(zi[:, t].to(h.dtype), zh.to(h.dtype), h, c)
            states[:, t + 1] = h
            kept.append(needed)
        ctx.save_for_backward(x, w_ih, w_hh)
        ctx.layer, ctx.kept, ctx.states = layer, kept, states[:, :-1]
        return torch.cat([states[:, 1:], c[:, None]], 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, w_ih, w_hh = ctx.saved_tensors
        cell, g = ctx.layer.cell, grads[0]
        length = x.shape[1]
        dc = g[:, -1]
        dh = torch.zeros_like(dc)
        of_zi = g.new_empty((len(x), length, len(w_ih)))
        of_zh = of_zi if cell.gates != 3 else torch.empty_like(of_zi)
        for t in reversed(range(length)):
            step = cell.backward(ctx.kept[t], dh + g[:, t], dc)
            of_zi[:, t] = step.of_zi
            if of_zh is not of_zi:
                of_zh[:, t] = step.of_zh
            dh = (step.of_zh.to(w_hh.dtype) @ w_hh).to(dh.dtype)
            dh = dh if step.of_h is None else dh.add_(step.of_h)
            dc = step.of_c
        ctx.layer.enter(x, ctx.states, of_zi, of_zh)
        ctx.kept = None
        dx = (of_zi.to(w_ih.dtype) @ w_ih).to(x.dtype) if ctx.needs_input_grad[0] else None
        return dx, dh, dc, None, None, None, None, None, None
