"""The law of a draw. Statistical tests run on a fresh key each time; each states its false-alarm rate."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

from dptrain.data.sampler import PoissonSampler
from dptrain.keystream import Keystream


def inclusions(num_units: int, rate: float, steps: int) -> np.ndarray:
    """(steps, num_units) bool: who was in which draw."""
    sampler = PoissonSampler(num_units, rate, Keystream())
    held = np.zeros((steps, num_units), dtype=bool)
    for step in range(steps):
        held[step, sampler.draw(step).numpy()] = True
    return held


@pytest.mark.parametrize("rate", [0.003, 0.1, 0.5, 0.97])
def test_number_of_inclusions_is_binomial(rate: float) -> None:
    """Exact two-sided binomial test over 2,000,000 inclusions; false alarm 1e-6 for each rate."""
    held = inclusions(2000, rate, 1000)
    assert stats.binomtest(int(held.sum()), held.size, rate).pvalue > 1e-6


def test_sizes_of_draws_are_binomial() -> None:
    """Chi-square of draw sizes against Binomial(40, 0.1); false alarm 1e-6. Fixed-size batches fail it."""
    sizes = inclusions(40, 0.1, 20_000).sum(axis=1)
    expected = np.append(stats.binom.pmf(np.arange(10), 40, 0.1), stats.binom.sf(9, 40, 0.1)) * len(sizes)
    observed = np.bincount(np.minimum(sizes, 10), minlength=11)
    assert stats.chisquare(observed, expected).pvalue > 1e-6


def test_units_and_steps_are_independent() -> None:
    """Pairs of units within a step, and one unit in consecutive steps: exact binomial tests of the number of joint
    inclusions, false alarm 1e-6 each."""
    held = inclusions(500, 0.3, 2000)
    for together in (held[:, ::2] & held[:, 1::2], held[::2] & held[1::2]):
        assert stats.binomtest(int(together.sum()), together.size, 0.09).pvalue > 1e-6


def test_every_unit_has_the_same_rate() -> None:
    """Chi-square over 200 units; false alarm 1e-6."""
    counts = inclusions(200, 0.2, 5000).sum(axis=0)
    statistic = float((((counts - 1000) ** 2) / (5000 * 0.2 * 0.8)).sum())
    assert stats.chi2.sf(statistic, 200) > 1e-6


def test_rate_one_holds_everyone_and_small_rates_give_empty_draws() -> None:
    assert torch.equal(PoissonSampler(5, 1.0, Keystream()).draw(0), torch.arange(5))
    draw = PoissonSampler(1000, 2.0**-60, Keystream()).draw(0)  # not empty with probability below 1e-15
    assert draw.shape == (0,) and draw.dtype == torch.int64
    assert PoissonSampler(0, 0.5, Keystream()).draw(0).shape == (0,)


def test_draws_are_distinct_sorted_and_span_chunks() -> None:
    draw = PoissonSampler((1 << 20) + 1000, 0.5, Keystream()).draw(3)
    assert bool((draw[1:] > draw[:-1]).all()) and int(draw[-1]) >= 1 << 20


@pytest.mark.parametrize("rate", [1e-300, 2.0**-64, 0.1, 1 / 3, math.nextafter(1.0, 0.0), 1.0])
def test_the_rate_used_is_never_above_the_rate_charged(rate: float) -> None:
    used = Fraction(PoissonSampler(1, rate, Keystream())._threshold, 1 << 64)
    assert 0 <= Fraction(rate) - used < Fraction(1, 1 << 63)


def test_a_draw_is_never_replayed() -> None:
    sampler = PoissonSampler(10, 0.5, Keystream())
    sampler.draw(1)
    for step in (0, 1):
        with pytest.raises(RuntimeError, match="already drawn"):
            sampler.draw(step)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan, math.inf])
def test_impossible_rates_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="sampling_rate"):
        PoissonSampler(10, rate, Keystream())
