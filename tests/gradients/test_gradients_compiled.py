"""The compiled last pass gives the numbers of torch's, bit by bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dptrain.gradients.draw_sum import DrawSum


@pytest.mark.parametrize("scale", [1e-6, 1.0 / 3.0, 2.0**-40])
@pytest.mark.parametrize("spread", [0.6, 1e6, 2.0**40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_numbers_as_torch(scale: float, spread: float, dtype: torch.dtype) -> None:
    pytest.importorskip("numba", reason="needs the extra 'fast'")
    torch.manual_seed(0)
    sums = [torch.randn(7, 300, dtype=dtype) * spread, torch.tensor([0.5, 1.5, -0.5, -2.5, 2.0**30], dtype=dtype)]
    noise = (torch.randn(2105, dtype=torch.float64) * spread).round_()
    found = []
    for compiled in (False, True):
        parameters = [nn.Parameter(torch.zeros(7, 300)), nn.Parameter(torch.zeros(5))]
        total = DrawSum(parameters, True, compiled)
        total._parts = [part.clone() for part in sums]
        total.release(noise.split(1000), scale)
        found.append([p.grad for p in parameters])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
