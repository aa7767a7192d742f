"""The arithmetic of one time step of torch's recurrent layers, forwards and backwards, without their weights.

A cell takes the two linear maps of a step, of its input (zi) and of its state (zh), both (N, gates H), and gives the
new state. The equations and the order of gates are those of torch.nn.LSTM, torch.nn.GRU and torch.nn.RNN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

aten = torch.ops.aten
Kept = tuple[Tensor, ...]


@dataclass(frozen=True)
class Step:
    """A step backwards: gradients of both linear maps (N, gates H), and of the state before, beside that through zh."""

    of_zi: Tensor
    of_zh: Tensor
    of_h: Tensor | None  # (N, H); None for zero
    of_c: Tensor  # (N, H); zero where there is no cell state


class Cell(Protocol):
    """One kind of recurrent layer."""

    gates: int

    def forward(self, zi: Tensor, zh: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Kept]:
        """New h and c (N, H), and what ``backward`` needs. ``zh`` may be overwritten."""
        ...

    def backward(self, kept: Kept, dh: Tensor, dc: Tensor) -> Step:
        """From the gradients of the new h and c."""
        ...


class LSTMCell:
    """i, f, o = sigmoid; g = tanh; c' = f c + i g; h' = o tanh c'."""

    gates = 4

    def forward(self, zi: Tensor, zh: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Kept]:
        """See ``Cell``."""
        size = h.shape[1]
        a = zh.add_(zi)
        a[:, : 2 * size].sigmoid_()
        a[:, 2 * size : 3 * size].tanh_()
        a[:, 3 * size :].sigmoid_()
        i, f, g, o = a.chunk(4, 1)
        new = torch.addcmul(i * g, f, c)
        bent = new.tanh()
        return o * bent, new, (a, c, bent)

    def backward(self, kept: Kept, dh: Tensor, dc: Tensor) -> Step:
        """See ``Cell``."""
        a, c, bent = kept
        i, f, g, o = a.chunk(4, 1)
        dc = dc + aten.tanh_backward(dh * o, bent)
        z = torch.empty_like(a)
        of_i, of_f, of_g, of_o = z.chunk(4, 1)
        aten.sigmoid_backward.grad_input(dc * g, i, grad_input=of_i)
        aten.sigmoid_backward.grad_input(dc * c, f, grad_input=of_f)
        aten.tanh_backward.grad_input(dc * i, g, grad_input=of_g)
        aten.sigmoid_backward.grad_input(dh * bent, o, grad_input=of_o)
        return Step(z, z, None, dc * f)


class GRUCell:
    """r, z = sigmoid; n = tanh(zi_n + r zh_n); h' = (1 - z) n + z h."""

    gates = 3

    def forward(self, zi: Tensor, zh: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Kept]:
        """See ``Cell``."""
        size = h.shape[1]
        a = zi[:, : 2 * size] + zh[:, : 2 * size]
        r, z = a.sigmoid_().chunk(2, 1)
        inner = zh[:, 2 * size :]
        n = torch.addcmul(zi[:, 2 * size :], r, inner).tanh_()
        return torch.lerp(n, h, z), c, (r, z, n, inner, h)

    def backward(self, kept: Kept, dh: Tensor, dc: Tensor) -> Step:
        """See ``Cell``."""
        r, z, n, inner, h = kept
        of_n = aten.tanh_backward(dh * (1.0 - z), n)
        of_z = aten.sigmoid_backward(dh * (h - n), z)
        of_r = aten.sigmoid_backward(of_n * inner, r)
        return Step(torch.cat([of_r, of_z, of_n], 1), torch.cat([of_r, of_z, of_n * r], 1), dh * z, dc)


class RNNCell:
    """h' = tanh(zi + zh), or relu."""

    gates = 1

    def __init__(self, relu: bool) -> None:
        self._relu = relu

    def forward(self, zi: Tensor, zh: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Kept]:
        """See ``Cell``."""
        new = zh.add_(zi)
        new = new.relu_() if self._relu else new.tanh_()
        return new, c, (new,)

    def backward(self, kept: Kept, dh: Tensor, dc: Tensor) -> Step:
        """See ``Cell``."""
        z = aten.threshold_backward(dh, kept[0], 0) if self._relu else aten.tanh_backward(dh, kept[0])
        return Step(z, z, None, dc)


CELLS: dict[str, Cell] = {
    "lstm": LSTMCell(),
    "gru": GRUCell(),
    "rnn_tanh": RNNCell(relu=False),
    "rnn_relu": RNNCell(relu=True),
}
"""By the name of torch's function for the whole layer."""
