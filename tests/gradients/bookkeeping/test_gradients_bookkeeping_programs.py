"""Random small models, in which any function may be given a parameter or a row's value in any place: the clipped sum
is that of float64 autograd row by row, or the model is refused in one line. Nothing in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest
import torch
from bookkeeping_reference import agree, batch_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from dptrain.errors import ConfigError

SIZE = 4
"""Every value is a matrix of this size, rows' own with a batch dimension of one before it."""


def flat(value: Tensor) -> Tensor:
    """The matrix without its batch dimension."""
    return value[0] if value.dim() == 3 else value


def row(value: Tensor) -> Tensor:
    """One vector of it."""
    return flat(value)[1]


def stacked(value: Tensor) -> Tensor:
    """With a batch dimension."""
    return value if value.dim() == 3 else value[None]


def _in_place(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    out = a * 1.0
    out[..., 0] = row(b)
    return out.add_(flat(c))


FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "linear": lambda a, b, c: F.linear(a, flat(b), row(c)),
    "linear without bias": lambda a, b, c: F.linear(a, flat(b)),
    "matmul": lambda a, b, c: a @ b + c,
    "matmul turned": lambda a, b, c: a @ flat(b).t(),
    "turned matmul": lambda a, b, c: flat(a).T @ b,
    "einsum": lambda a, b, c: torch.einsum("...ij,jk->...ik", a, flat(b)),
    "bmm": lambda a, b, c: torch.bmm(stacked(a), stacked(b)) + c,
    "addmm": lambda a, b, c: torch.addmm(flat(a), flat(b), flat(c)),
    "layer norm": lambda a, b, c: F.layer_norm(a, (SIZE,), row(b), row(c)),
    "rms norm": lambda a, b, c: F.rms_norm(a, (SIZE,), row(b)),
    "group norm": lambda a, b, c: F.group_norm(stacked(a), 2, row(b), row(c)),
    "convolution": lambda a, b, c: F.conv1d(stacked(a), flat(b)[..., None], row(c)),
    "wide convolution": lambda a, b, c: F.conv1d(stacked(a), torch.stack([flat(b), flat(c), flat(b)], 2), padding=1),
    "depthwise convolution": lambda a, b, c: F.conv1d(stacked(a), flat(b)[:, None, :3], groups=SIZE, padding=1),
    "attention": lambda a, b, c: F.scaled_dot_product_attention(stacked(a), stacked(b), stacked(c)),
    "embedding of places": lambda a, b, c: F.embedding(torch.tensor([0, 2, 2, 3]), flat(b)) * a,
    "embedding of rows": lambda a, b, c: F.embedding(stacked(a).argmax(2), flat(b)) + c,
    "prelu": lambda a, b, c: F.prelu(stacked(a), row(b)),
    "product": lambda a, b, c: a * b,
    "sum": lambda a, b, c: a + b - c,
    "softmax": lambda a, b, c: torch.softmax(a, -1) * b,
    "where": lambda a, b, c: torch.where(a > 0, b, c),
    "joined": lambda a, b, c: torch.cat([flat(a)[:2], flat(b)[2:]]),
    "gathered": lambda a, b, c: flat(a).gather(0, flat(b).argsort(0)),
    "norm of weights": lambda a, b, c: a * b / (1.0 + flat(b).norm()) + c.mean(),
    "in place": _in_place,
    "turned": lambda a, b, c: a.transpose(-1, -2) + flat(b).mT,
    "cut": lambda a, b, c: torch.stack(flat(a).unbind(1), 0).roll(1, 0) * flat(b).diagonal(),
}
Line = tuple[str, int, int, int]


class Program(nn.Module):
    """Lines, each a function of three earlier values; the last values are what it gives."""

    def __init__(self, lines: Sequence[Line]) -> None:
        super().__init__()
        self.lines = lines
        self.first = nn.Parameter(torch.randn(SIZE, SIZE))
        self.second = nn.Parameter(torch.randn(SIZE, SIZE))
        self.out = nn.Linear(SIZE, 2)

    def forward(self, x: Tensor) -> Tensor:  # (1, SIZE, SIZE) -> (1, 2 SIZE)
        values = [x, self.first, self.second]
        for name, *places in self.lines:
            a, b, c = (values[place % len(values)] for place in places)
            values.append(torch.tanh(FUNCTIONS[name](a, b, c)))
        return self.out(x + stacked(values[-1]) + stacked(values[-2])).flatten(1)


lines = st.lists(
    st.tuples(st.sampled_from(list(FUNCTIONS)), st.integers(0, 6), st.integers(0, 6), st.integers(0, 6)),
    min_size=1,
    max_size=5,
)


@settings(max_examples=80)
@given(lines, st.sampled_from(["one row", "unequal"]))
@example([("wide convolution", 1, 1, 1)], "one row")  # lost the gradient of one of two places
@example([("addmm", 1, 0, 2)], "unequal")  # took a bias of every token for one of all
def test_any_program_is_exact_or_refused(program: list[Line], layout: str) -> None:
    torch.manual_seed(0)
    module = Program(program)
    with suppress(ConfigError):
        agree(module, batch_of(torch.randn(6, SIZE, SIZE), layout), rough=3e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_is_run_and_not_refused(name: str) -> None:
    """So that the test above does not pass by refusals."""
    torch.manual_seed(0)
    scaled_by_rows = ((1, 0, 2), (2, 1, 0))  # torch's group norm cannot be run row by row then
    for places in ((0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 1), (1, 1, 1)):
        if name == "group norm" and places in scaled_by_rows:
            continue
        agree(Program([(name, *places)]), batch_of(torch.randn(6, SIZE, SIZE), "unequal"), rough=3e-5)
