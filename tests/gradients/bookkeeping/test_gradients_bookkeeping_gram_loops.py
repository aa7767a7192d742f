"""Gram matrices by compiled loops, against float64 and against what is not a number."""

from __future__ import annotations

import pytest
import torch
from bookkeeping_reference import Applied, agree, batch_of, by_way
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from dptrain.gradients.bookkeeping.norms import LOOPS, gram_norm, outer_in_float64

pytest.importorskip("numba", reason="needs the extra 'fast'")


def exact(a: Tensor, g: Tensor) -> Tensor:
    """(U,) squared norms of the units' gradients."""
    return torch.stack([outer_in_float64(a[u], g[u]).square().sum() for u in range(len(a))])


@settings(max_examples=60, deadline=None)
@given(
    units=st.integers(1, 3),
    tokens=st.integers(2, 40),
    d=st.sampled_from([1, 2, 7, 8, 9, 31, 383, 384, 385, 800]),
    p=st.sampled_from([1, 3, 64, 500]),
    turned=st.booleans(),
    seed=st.integers(0, 99),
)
def test_norms_are_those_of_float64(units: int, tokens: int, d: int, p: int, turned: bool, seed: int) -> None:
    torch.manual_seed(seed)
    a, g = torch.randn(units, tokens, d), torch.randn(units, tokens, p)
    if turned:  # as attention leaves it: not side by side in memory
        g = torch.randn(tokens, units, p).transpose(0, 1)
    found, _ = gram_norm(a, g, LOOPS)
    truth = exact(a, g)
    cancelled = (a.norm(dim=2) * g.norm(dim=2)).sum(1).double().square() / truth
    assert bool(((found / truth - 1).abs() <= 1e-6 + 2e-8 * cancelled).all())


def test_a_kept_gram_matrix_serves_the_next_use_of_the_same_inputs() -> None:
    torch.manual_seed(0)
    a, held = torch.randn(2, 17, 5), {}
    for p in (3, 400):
        g = torch.randn(2, 17, p)
        assert torch.allclose(gram_norm(a, g, LOOPS, held)[0], exact(a, g), rtol=1e-6)
    assert list(held) == [LOOPS]


@pytest.mark.parametrize("tokens", [6, 7, 8])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_units_that_are_not_finite_say_so_and_touch_nobody_else(bad: float, tokens: int) -> None:
    torch.manual_seed(0)
    for place in range(tokens):
        a, g = torch.randn(3, tokens, 5), torch.randn(3, tokens, 4)
        truth = exact(a, g)
        a[1, place, 2] = bad
        g[1, place, 3] = 3e38
        found, _ = gram_norm(a, g, LOOPS)
        assert not float(found[1]) < 2.0**220
        assert torch.allclose(found[[0, 2]], truth[[0, 2]], rtol=1e-5)


def test_tied_weights_and_convolutions_by_loops() -> None:
    torch.manual_seed(0)
    tied = Applied(lambda m, x: F.linear(torch.tanh(m.table(x)), m.table.weight), table=nn.Embedding(9, 6))
    agree(tied, batch_of(torch.randint(0, 9, (6, 11)), "unequal"), prepare=by_way("gram_loops"))
