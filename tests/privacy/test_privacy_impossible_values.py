"""The attack of Haney et al. 2022 on the whole release path: values that one data set gives and its neighbour cannot.

Two neighbouring draws differ in one unit, whose clipped gradient is C in the first coordinate. A noisy output of
the one that lies on a finer grid than every output of the other betrays it, whatever epsilon was charged.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dptrain.data.batches import PhysicalBatch
from dptrain.gradients.protocol import ClippingRule, EngineSettings
from dptrain.keystream import Keystream
from dptrain.noise.fast import FastNoise
from dptrain.noise.secure import SecureNoise
from dptrain.privacy.grid import grid_step
from dptrain.registry import engines

OUTPUTS = 4_000_000
NORM, SLACK, SIGMA = 1.0, 1e-3, 1.0
STD = SIGMA * NORM * (1 + SLACK)


def first_coordinate(grid: float | None, present: bool) -> Tensor:
    """The clipped sum (1,) of a draw that holds one unit with gradient -C, or holds nothing, by the vmap engine."""
    module = nn.Linear(1, 1, bias=False)
    batch = PhysicalBatch(torch.full((1, 1), 5.0), torch.zeros(1), torch.zeros(1, dtype=torch.int64), torch.ones(1))
    total = torch.zeros(1, dtype=torch.float64)
    engine = engines.build("vmap", module, lambda out, _: out.squeeze(-1), ClippingRule(NORM, grid), EngineSettings())
    if present:
        engine.add_clipped_sum(batch, total)
    return total


def finer_than(values: Tensor, bits: int) -> int:
    """How many values are no multiple of 2^-bits."""
    scaled = values * 2.0**bits
    return int((scaled != scaled.round()).sum())


def coarsest_grid(values: Tensor) -> int:
    """The smallest k such that every value is a multiple of 2^-k."""
    return next(k for k in range(1074) if finer_than(values, k) == 0)


def impossible(one: Tensor, other: Tensor) -> int:
    """Outputs of either that lie on a finer grid than every output of its neighbour."""
    return finer_than(one, coarsest_grid(other)) + finer_than(other, coarsest_grid(one))


def secure_release(present: bool, step: int, noise: SecureNoise, grid: float) -> Tensor:
    """Half of the outputs: sum + noise, in the gradient's own unit."""
    return (first_coordinate(grid, present) + noise.draw(step, OUTPUTS // 2)) * grid


def test_the_unit_moves_the_sum_by_its_norm() -> None:
    """The attack is given its best case: without this the tests below would show nothing."""
    grid = grid_step(NORM, SLACK, 1)
    assert float(first_coordinate(grid, True).abs() * grid) == pytest.approx(NORM, rel=1e-3)
    assert not first_coordinate(grid, False).any()


def test_secure_noise_gives_no_value_that_a_neighbour_cannot() -> None:
    """Each of 4 million outputs is a whole number of grid steps, whichever data set it came from."""
    grid = grid_step(NORM, SLACK, 1)
    noise = SecureNoise(Keystream(), STD / grid)
    one, other = (secure_release(present, step, noise, grid) for step, present in enumerate((True, False)))
    assert impossible(one, other) == 0
    for values in (one, other):
        assert bool(((values / grid) == (values / grid).round()).all())
        assert len(values.unique()) > 1000


def test_fast_noise_betrays_units_which_is_why_it_is_not_the_default() -> None:
    """A sum of 0 shows noise near 0 with all its small bits; next to a sum of C those bits are rounded away.

    A given key: about one in eight holds a noise so near 0 that its half lies on as fine a grid as the other.
    """
    noise = FastNoise(Keystream(test_key=bytes([1]) * 32), STD)
    one, other = (first_coordinate(None, p) + noise.draw(s, OUTPUTS // 2) for s, p in enumerate((True, False)))
    assert impossible(one, other) > OUTPUTS // 100
