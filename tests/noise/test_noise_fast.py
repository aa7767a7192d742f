"""The fast noise has the right law and scale, and never repeats itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from dptrain.keystream import Keystream
from dptrain.noise.fast import FastNoise


def test_law_and_scale() -> None:
    """KS, and exact chi-square test of the variance, on 1e6; false alarm 1e-6 each."""
    sample = FastNoise(Keystream(), 0.37).draw(0, 1_000_000)
    assert sample.dtype == torch.float32
    normal = sample.numpy() / 0.37
    assert stats.kstest(normal, "norm").pvalue > 1e-6
    statistic = float((normal**2).sum())
    assert 2 * min(stats.chi2.cdf(statistic, len(normal)), stats.chi2.sf(statistic, len(normal))) > 1e-6


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
