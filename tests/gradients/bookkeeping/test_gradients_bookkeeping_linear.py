"""Linear maps in every form, by every way, against float64 one row at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bookkeeping_reference import LAYOUTS, Applied, agree, batch_of, by_way
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F


@settings(max_examples=12)
@given(
    lead=st.lists(st.integers(1, 4), max_size=3),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    bias=st.booleans(),
    layout=st.sampled_from(list(LAYOUTS)),
    seed=st.integers(0, 9),
)
def test_linear_with_any_leading_dimensions(
    lead: list[int], sizes: tuple[int, int], bias: bool, layout: str, seed: int
) -> None:
    torch.manual_seed(seed)
    engine = agree(nn.Linear(*sizes, bias=bias), batch_of(torch.randn(6, *lead, sizes[0]), layout))
    assert not engine.without_rule


@pytest.mark.parametrize("way", ["gram1", "gram2", "gram4", "gram_loops", "kept"])
@pytest.mark.parametrize("layout", ["one row", "unequal"])
@pytest.mark.parametrize("narrow", [24, 5])
def test_every_way_to_a_linear_norm(way: str, layout: str, narrow: int) -> None:
    torch.manual_seed(0)
    tokens = 64 if way == "gram2" else 128 if way == "gram4" else 6
    module = Applied(
        lambda m, x: m.out(torch.tanh(m.up(m.down(x)) @ m.turned)),
        down=nn.Linear(24, narrow),
        up=nn.Linear(narrow, 24, bias=False),
        turned=nn.Parameter(torch.randn(24, narrow) / 5),
        out=nn.Linear(narrow, 24),
    )
    engine = agree(module, batch_of(torch.randn(6, tokens, 24), layout), prepare=by_way(way))
    assert not engine.chooser.timings


FORMS: dict[str, tuple[Callable[[Any, Tensor], Tensor], set[str]]] = {
    "x @ w": (lambda m, x: x @ m.tall, set()),
    "x @ w.t()": (lambda m, x: x @ m.wide.t(), set()),
    "x @ w.T": (lambda m, x: x @ m.wide.T, set()),
    "x @ w.mT": (lambda m, x: x @ m.wide.mT, set()),
    "x @ w.transpose": (lambda m, x: x @ m.wide.transpose(-1, -2), set()),
    "matmul": (lambda m, x: torch.matmul(x, m.tall), set()),
    "mm": (lambda m, x: torch.mm(x[0], m.tall)[None], set()),
    "addmm": (lambda m, x: torch.addmm(m.shift, x[0], m.tall)[None], set()),
    "linear of a turned weight": (lambda m, x: F.linear(x, m.tall.t(), m.shift), set()),
    "linear, bias computed": (lambda m, x: F.linear(x, m.wide, 2 * m.shift), set()),
    "addmm with beta": (lambda m, x: torch.addmm(m.shift, x[0], m.tall, beta=0.5)[None], {"addmm"}),
    "w @ x": (lambda m, x: (m.wide @ x[0].t())[None], {"matmul"}),
    "einsum": (lambda m, x: torch.einsum("btd,dp->btp", x, m.tall), {"einsum"}),
    "weight computed": (lambda m, x: F.linear(x, m.wide**2), set()),
    "part of the weight": (lambda m, x: F.linear(x, m.wide[:2]), set()),
    "flat weight": (lambda m, x: F.linear(x, m.tall.view(3, 6)), set()),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_products_with_a_matrix(form: str) -> None:
    torch.manual_seed(0)
    forward, without_rule = FORMS[form]
    module = Applied(forward, tall=nn.Parameter(torch.randn(6, 3)), wide=nn.Parameter(torch.randn(3, 6)))
    module.shift = nn.Parameter(torch.randn(3))
    for layout in ("one row", "unequal"):
        engine = agree(module, batch_of(torch.randn(6, 5, 6), layout))
        assert set(engine.without_rule) == without_rule


def test_inputs_that_are_not_contiguous() -> None:
    torch.manual_seed(0)
    for layout in LAYOUTS:
        agree(nn.Linear(6, 3), batch_of(torch.randn(6, 6, 5).transpose(1, 2), layout))


def test_float64_models() -> None:
    torch.manual_seed(0)
    agree(nn.Linear(6, 3).double(), batch_of(torch.randn(6, 5, 6).double(), "unequal"), rough=1e-12)
