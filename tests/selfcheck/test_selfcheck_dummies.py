"""Dummy units laid out for an engine."""

from __future__ import annotations

import pytest
import torch

from dptrain.selfcheck.dummies import Dummies

COUNT = 256


@pytest.mark.parametrize("rate", [0.0005, 0.034, 0.5, 1.0])
def test_every_draw_of_a_run_has_one_shape_and_holds_its_dummies(rate: float) -> None:
    """200 draws; a batch that grew would happen about once in 1e14."""
    dummies = Dummies(COUNT, 0.1, torch.float32, "cpu", rate)
    generator = torch.Generator().manual_seed(0)
    shapes = set()
    for _ in range(200):
        drawn = torch.rand(COUNT, generator=generator) < rate
        batch = dummies.batch(drawn)
        shapes.add(tuple(batch.inputs.shape))
        summed = (batch.inputs * batch.weight[:, None]).sum(0).double()
        assert torch.allclose(summed, torch.where(drawn, dummies.size, 0.0))
        assert len(set(batch.unit.tolist())) == len(batch.unit), "a dummy is a unit of its own"
    assert len(shapes) == 1
    (rows, _), *_ = shapes
    assert rows >= min(COUNT, COUNT * rate) and (rate < 0.5) == (rows < COUNT / 2)


def test_padding_is_made_of_dummies_that_were_not_drawn() -> None:
    """Rows of zeros would hide an engine that forgets the weight."""
    dummies = Dummies(COUNT, 0.1, torch.float32, "cpu", 0.034)
    batch = dummies.batch(torch.zeros(COUNT, dtype=torch.bool))
    assert not bool(batch.weight.any()) and bool(batch.inputs.abs().sum(1).all())


def test_a_draw_beyond_the_room_is_laid_out_whole() -> None:
    dummies = Dummies(COUNT, 0.1, torch.float32, "cpu", 0.001)
    batch = dummies.batch(torch.arange(COUNT) < 100)
    assert len(batch.weight) == COUNT and int(batch.weight.sum()) == 100
