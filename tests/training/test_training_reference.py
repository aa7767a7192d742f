"""References trained stacked are those trained one by one; draws are the run's Poisson sampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dptrain.config import OptimizerConfig
from dptrain.data.source import Rows
from dptrain.training.losses import cross_entropy
from dptrain.training.reference_draws import ReferenceDraws, draw_size
from dptrain.training.reference_plain import Recipe, train_alone, train_stacked


def mlp(seed: int, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("sgd", torch.float32), ("sgd", torch.float64), ("adam", torch.float64), ("rmsprop", torch.float64)],
)
def test_stacked_weights_are_those_of_one_by_one(name: str, dtype: torch.dtype) -> None:
    """In float64 where the optimizer divides by small numbers and so enlarges the order of additions."""
    rows = Rows(torch.randn(60, 12, dtype=dtype), torch.arange(60) % 3)
    options = {"momentum": 0.9} if name == "sgd" else {}
    optimizer = OptimizerConfig(name=name, lr=0.05, schedule="cosine", options=options)
    recipe = Recipe(rows, cross_entropy, optimizer, 40, 8.0, 5)
    members = [torch.arange(0, 30), torch.arange(30, 60), torch.arange(0, 60, 2)]

    def draws(k: int):
        return ReferenceDraws(members[k], 8, 40, k)

    alone = [train_alone(mlp(k, dtype), recipe, draws(k)) for k in range(3)]
    together = train_stacked([mlp(k, dtype) for k in range(3)], recipe, [draws(k) for k in range(3)])
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert torch.allclose(one[key], other[key], atol=1e-6, rtol=0), key
    assert not torch.allclose(alone[0]["1.weight"], alone[1]["1.weight"], atol=1e-3)


def test_draws_are_uniform_subsets_of_one_size() -> None:
    """4,000 draws of 6 of 20: each member's rate within 5 standard errors of 0.3 (0.036), each pair's within 5 of
    30 / 380 (0.0214)."""
    members = torch.arange(100, 120)
    drawn = list(ReferenceDraws(members, 6, 4000, 5))
    taken = np.zeros((4000, 20))
    for row, draw in zip(taken, drawn, strict=True):
        assert len(draw) == len(torch.unique(draw)) == 6
        row[draw.numpy() - 100] = 1
    assert np.abs(taken.mean(axis=0) - 0.3).max() < 0.036
    together = taken.T @ taken / 4000
    assert np.abs(together[~np.eye(20, dtype=bool)] - 30 / 380).max() < 0.0214
    assert all(torch.equal(a, b) for a, b in zip(drawn, ReferenceDraws(members, 6, 4000, 5), strict=True))


@pytest.mark.parametrize(
    ("expected", "fewest", "size"), [(32.0, 750, 32), (20.6, 750, 21), (64.0, 50, 50), (0.3, 9, 1)]
)
def test_draws_are_as_large_as_the_run_expects(expected: float, fewest: int, size: int) -> None:
    assert draw_size(expected, fewest) == size
