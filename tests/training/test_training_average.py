"""The moving average of the weights: against a hand computation, in what is judged and released, over a resume."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dptrain.training.average import Average


def test_the_mean_is_the_recursion_by_hand() -> None:
    """Two parameters, decay 0.5: the warm-up holds in steps 1 to 7 ((1 + t) / (10 + t) below 0.5), 0.5 behind it."""
    parameters = [nn.Parameter(torch.tensor([4.0], dtype=torch.float64)), nn.Parameter(torch.ones(2, 2).double())]
    average, by_hand = Average(parameters, 0.5), 4.0
    for step in range(1, 13):
        with torch.no_grad():
            parameters[0].fill_(float(step * step))
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        by_hand = decay * by_hand + (1 - decay) * step * step
    with average.shown():
        assert parameters[0].item() == pytest.approx(by_hand, rel=1e-12)
        assert torch.equal(parameters[1], torch.ones(2, 2).double()), "what never moved is where it was"
    assert parameters[0].item() == 144.0, "its own again"


def test_it_goes_on_where_it_was_kept() -> None:
    draws = torch.randn(8, 3, generator=torch.Generator().manual_seed(2))
    whole, first, second = (nn.Parameter(torch.zeros(3)) for _ in range(3))
    one, early = Average([whole], 0.9), Average([first], 0.9)
    for number, draw in enumerate(draws):
        whole.data.copy_(draw)
        one.update()
        if number < 4:
            first.data.copy_(draw)
            early.update()
    late = Average([second], 0.9)
    late.take_up(early.kept())
    for draw in draws[4:]:
        second.data.copy_(draw)
        late.update()
    assert all(torch.equal(one.kept()[name], late.kept()[name]) for name in one.kept())
    one.settle()
    assert torch.equal(whole, one.kept()["average.0"])
