"""The fast noise has the right law and scale, and never repeats itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from dptrain.keystream import Keystream
from dptrain.noise import fast
from dptrain.noise.fast import FastNoise


@pytest.fixture(params=["torch", "compiled"])
def compiled(request: pytest.FixtureRequest) -> bool:
    if request.param == "compiled":
        pytest.importorskip("numba", reason="needs the extra 'fast'")
    return request.param == "compiled"


def test_law_and_scale(compiled: bool) -> None:
    """KS, and exact chi-square test of the variance, on 1e6; false alarm 1e-6 each."""
    sample = FastNoise(Keystream(), 0.37, compiled=compiled).draw(0, 1_000_000)
    assert sample.dtype == torch.float32
    normal = sample.numpy() / 0.37
    assert stats.kstest(normal, "norm").pvalue > 1e-6
    statistic = float((normal**2).sum())
    assert 2 * min(stats.chi2.cdf(statistic, len(normal)), stats.chi2.sf(statistic, len(normal))) > 1e-6


def test_tails_reach_as_far_as_the_law(compiled: bool) -> None:
    """The members of a pair, for radius words from the smallest to the largest, against float64."""
    high = np.array([0, 0, 1, 255, -1, 2**30, 2**31 - 1, -(2**31) + 1], dtype=np.int32)
    low = np.array([1, 2**31 - 1, 0, 77, 5, 0, 2**31 - 1, 3], dtype=np.int32)
    for angle in (-(2**31), -(2**30), -1, 0, 12345, 2**31 - 1):
        words = np.concatenate([high, low, np.full(len(high), angle, dtype=np.int32)])
        transform = fast._compiled() if compiled else fast.box_muller
        found = transform(words, 2.0, torch.empty(5 * len(high))).numpy().reshape(2, -1)
        low31 = np.abs(low.astype(np.float64)) if not compiled else (low & 0x7FFFFFFF).astype(np.float64)
        size = np.abs(high.astype(np.float64)) if not compiled else (high & 0x7FFFFFFF).astype(np.float64)
        length = 2.0 * np.sqrt(-2 * np.log(np.minimum(2.0**-64 + size * 2.0**-31 + low31 * 2.0**-62, 1.0)))
        length *= np.where(high < 0, -1.0, 1.0)
        turn = math.pi * angle * 2.0**-32
        # 1 - U is known to float32 only, and with it small radii
        assert np.allclose(found, [length * np.cos(turn), length * np.sin(turn)], rtol=1e-5, atol=2.0 * 5e-4)
        assert np.allclose(found[:, :4], [(length * f(turn))[:4] for f in (np.cos, np.sin)], rtol=1e-5, atol=1e-5)


def test_steps_and_processes_differ() -> None:
    noise, other = FastNoise(Keystream(), 1.0), FastNoise(Keystream(), 1.0)
    draws = [noise.draw(0, 64), noise.draw(1, 64), other.draw(0, 64)]
    assert len({tuple(d.tolist()) for d in draws}) == 3
    assert len(np.unique(torch.cat(draws).numpy())) > 180


def test_a_step_is_refused_twice() -> None:
    noise = FastNoise(Keystream(), 1.0)
    noise.draw(4, 8)
    with pytest.raises(RuntimeError, match="already drawn"):
        noise.draw(4, 8)


def test_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    FastNoise(Keystream(), 1.0).draw(0, 100)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan, math.inf])
def test_impossible_scales_are_refused(std: float) -> None:
    with pytest.raises(ValueError, match="std="):
        FastNoise(Keystream(), std)
