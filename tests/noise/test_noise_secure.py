"""The default noise is the exactly rounded Gaussian. Statistical tests use fresh keys and state their false alarms."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from mpmath import mp
from scipy import stats

from dptrain.errors import ConfigError
from dptrain.keystream import Keystream
from dptrain.noise import secure
from dptrain.noise.secure import CUT, FAST_BOUND, SecureNoise, pair_bound, round_pairs, settle

MIDDLE = 2.0**20 * 1.37


def ideal(radius: int, angle: int, scale: float) -> tuple[Any, Any]:
    """S r cos and S r sin of the middle of what the words stand for, in 200 bits, by the plain formula."""
    with mp.workprec(200):
        uniform = (mp.mpf(radius & (2**63 - 1)) + 0.5) / mp.mpf(2) ** 63
        turn = mp.pi * (mp.mpf(angle) + 0.5) / mp.mpf(2) ** 64
        length = (-1 if radius < 0 else 1) * mp.mpf(scale) * mp.sqrt(-2 * mp.log(uniform))
        return length * mp.cos(turn), length * mp.sin(turn)


@pytest.fixture(params=["torch", "compiled"])
def compiled(request: pytest.FixtureRequest) -> bool:
    if request.param == "compiled":
        pytest.importorskip("numba", reason="needs the extra 'fast'")
    return request.param == "compiled"


def transform(words: np.ndarray, scale: float, compiled: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unrounded float64 normals, rounded ones, and undecided pairs, of given words."""
    out, work = np.empty(len(words)), np.empty((2, len(words)))
    undecided = round_pairs(words, scale, out, work, *(secure._compiled() if compiled else (None, None)))
    return work[1].copy(), out, undecided


def random_words(pairs: int) -> np.ndarray:
    return np.frombuffer(np.random.default_rng().bytes(16 * pairs), dtype=np.int64).copy()


def test_both_ways_suspect_the_same_pairs() -> None:
    """Roundings within 2^-8 of a tie, ends of U, and values that are no number; some of 5,000 pairs each."""
    compiled = pytest.importorskip("dptrain.noise.compiled", reason="needs the extra 'fast'")
    radius = random_words(2_500)
    gap = np.random.default_rng().uniform(-0.5, 0.5, len(radius) * 2)
    threshold = 0.5 - 2.0**-8
    radius[:4], gap[4], gap[len(radius) + 5] = (0, 5, -1, 1 << 38), np.nan, np.inf
    expected = secure.suspects(radius, gap, threshold)
    assert {0, 1, 2, 3, 4, 5} <= set(expected.tolist())
    assert 50 < len(expected) < 400  # 156 ties
    np.testing.assert_array_equal(compiled.suspects(radius, gap, threshold), expected)


def test_float64_transform_stays_far_inside_its_proved_bound(compiled: bool) -> None:
    """20,000 pairs against 200-bit arithmetic: errors below an eighth of the bound, and half of each pair's own."""
    words = random_words(20_000)
    normals, _, _ = transform(words, MIDDLE, compiled)
    exact = [ideal(int(r), int(a), MIDDLE) for r, a in zip(words[:20_000], words[20_000:], strict=True)]
    errors = np.array([[float(mp.mpf(y) - e) for y, e in zip(pair, ideals, strict=True)]
                       for pair, ideals in zip(normals.reshape(2, -1).T, exact, strict=True)])  # fmt: skip
    bounds = MIDDLE * pair_bound((words[:20_000] & (2**63 - 1)) * 2.0**-63)
    assert np.abs(errors).max() < MIDDLE * FAST_BOUND / 8
    assert (np.abs(errors).max(axis=1) < bounds / 2).all()


def test_bounds_hold_at_the_edges(compiled: bool) -> None:
    """Radius words from the smallest to the largest, edges of the fast range included."""
    edges = [0, 1, 2**38, int(CUT * 2**63), 2**62, 2**63 - int(CUT * 2**63), 2**63 - 2**30, 2**63 - 1]
    radius = np.array([k + d for k in edges for d in (-1, 0, 1, 511) if 0 <= k + d < 2**63], dtype=np.int64)
    for angle in (-(2**63), -1, 0, 2**62, 2**63 - 1):
        words = np.concatenate([radius, np.full(len(radius), angle)])
        normals, out, undecided = transform(words, MIDDLE, compiled)
        uniform = radius * 2.0**-63
        for pair in range(len(radius)):
            inside = CUT <= uniform[pair] <= 1 - CUT
            bound = MIDDLE * min(pair_bound(uniform[pair : pair + 1])[0], FAST_BOUND if inside else np.inf)
            for member, value in enumerate(ideal(int(radius[pair]), angle, MIDDLE)):
                got = normals[pair + member * len(radius)]
                if np.isfinite(bound):
                    assert abs(mp.mpf(got) - value) < bound
                if pair not in undecided:
                    assert out[pair + member * len(radius)] == float(mp.nint(value))


@pytest.mark.parametrize("scale", [0.01, 1.5, 2.0**10, MIDDLE, 2.0**30, 2.0**36])
def test_every_rounding_is_that_of_the_exact_value(scale: float, compiled: bool) -> None:
    """Decided pairs equal the rounded 200-bit value; at large S pairs are truly undecided, and some are settled."""
    pairs = 3000
    words = random_words(pairs)
    _, out, undecided = transform(words, scale, compiled)
    decided = np.setdiff1d(np.arange(pairs), undecided)
    assert len(decided) > 0.9 * pairs
    for pair in decided.tolist():
        value = ideal(int(words[pair]), int(words[pairs + pair]), scale)
        assert (out[pair], out[pairs + pair]) == (float(mp.nint(value[0])), float(mp.nint(value[1])))


def test_settling_a_decided_pair_changes_nothing(compiled: bool) -> None:
    """The exact path, forced on pairs that the fast path was sure of, gives the same whole numbers."""
    pairs = 400
    words = random_words(pairs)
    _, out, undecided = transform(words, MIDDLE, compiled)
    again = out.copy()
    forced = np.setdiff1d(np.arange(pairs), undecided)
    settle(forced, words, MIDDLE, again, Keystream().open(secure.Purpose.NOISE_TIE, 0))
    assert np.array_equal(again, out)


def test_a_draw_that_settles_everything_equals_one_that_settles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    key = bytes(range(32))
    plain = SecureNoise(Keystream(test_key=key), MIDDLE).draw(0, 601)
    monkeypatch.setattr(secure, "FAST_BOUND", 1.0)  # nothing is certain at first sight
    monkeypatch.setattr(secure, "pair_bound", lambda uniform: np.full(len(uniform), np.inf))
    assert np.array_equal(plain, SecureNoise(Keystream(test_key=key), MIDDLE).draw(0, 601))


@pytest.mark.parametrize("scale", [0.7, MIDDLE, 2.0**32])
def test_both_transforms_draw_the_same_whole_numbers(scale: float) -> None:
    """Of one key, whichever transform: what is released does not depend on what is installed. Odd counts too."""
    pytest.importorskip("numba", reason="needs the extra 'fast'")
    key = bytes(range(32))
    for count in (1, 2049, 70_001):
        plain, other = (SecureNoise(Keystream(test_key=key), scale, compiled) for compiled in (False, True))
        assert torch.equal(plain.draw(0, count), other.draw(0, count))


@pytest.mark.parametrize("scale", [0.7, 2.0**10, MIDDLE])
def test_whole_numbers_follow_the_rounded_law(scale: float, compiled: bool) -> None:
    """Chi-square of single whole numbers around 0 (S to 2^10) or of 1000 equal cells; false alarm 1e-6 each."""
    count = 1_000_000
    sample = SecureNoise(Keystream(), scale, compiled).draw(0, count).numpy()
    assert np.array_equal(sample, np.rint(sample))
    if scale <= 2.0**10:
        reach = 200 if scale > 1 else 1
        edges = np.arange(-reach, reach + 2) - 0.5
    else:
        edges = np.floor(scale * stats.norm.ppf(np.linspace(0, 1, 1001)[1:-1])) + 0.5
    law = np.diff(stats.norm.cdf(np.concatenate([[-np.inf], edges, [np.inf]]) / scale))
    observed = np.bincount(np.searchsorted(edges, sample), minlength=len(law))
    assert stats.chisquare(observed, law * count).pvalue > 1e-6


def test_normals_pass_kolmogorov_smirnov_and_the_variance_is_within_a_percent(compiled: bool) -> None:
    """KS on 1e6 (false alarm 1e-6); exact two-sided chi-square test of the variance (false alarm 1e-6), which a sigma
    1 % off fails with probability above 0.999999 (2 % of variance is 14 standard deviations)."""
    sample = SecureNoise(Keystream(), MIDDLE, compiled).draw(0, 1_000_000).numpy()
    assert stats.kstest(sample / MIDDLE, "norm").pvalue > 1e-6

    def tail(sigma: float) -> float:
        statistic = float(((sample / sigma) ** 2).sum())
        return float(2 * min(stats.chi2.cdf(statistic, len(sample)), stats.chi2.sf(statistic, len(sample))))

    assert tail(MIDDLE) > 1e-6
    assert tail(MIDDLE * 1.01) < 1e-6 and tail(MIDDLE * 0.99) < 1e-6


def test_members_of_a_pair_cover_the_circle_evenly_and_independently() -> None:
    """Chi-square of the angle in 64 sectors by the radius in 8 shells; false alarm 1e-6."""
    pairs = secure.PAIRS
    draws = [SecureNoise(Keystream(), MIDDLE).draw(0, 2 * pairs).numpy() / MIDDLE for _ in range(32)]
    x = np.concatenate([d[:pairs] for d in draws])
    y = np.concatenate([d[pairs:] for d in draws])
    sector = np.minimum((np.arctan2(y, x) / (2 * np.pi) + 0.5) * 64, 63).astype(int)
    shell = np.minimum(np.exp(-(x**2 + y**2) / 2) * 8, 7).astype(int)
    observed = np.bincount(sector * 8 + shell, minlength=512)
    assert stats.chisquare(observed).pvalue > 1e-6


def test_steps_and_neighbours_are_independent() -> None:
    """Correlation of steps, and of neighbouring coordinates, plain and squared; |r| sqrt(n) below 5.5 (4e-8 each)."""
    noise = SecureNoise(Keystream(), MIDDLE)
    one, two = noise.draw(0, 400_000).numpy(), noise.draw(1, 400_000).numpy()
    for a, b in ((one, two), (one[1:], one[:-1]), (one[secure.PAIRS :], one[: -secure.PAIRS])):
        assert abs(np.corrcoef(a, b)[0, 1]) * len(a) ** 0.5 < 5.5
        assert abs(np.corrcoef(a**2, b**2)[0, 1]) * len(a) ** 0.5 < 5.5


def test_any_count_is_served_and_no_step_twice() -> None:
    noise = SecureNoise(Keystream(), 5000.0)
    for step, count in enumerate((0, 1, 2, 3, 2 * secure.PAIRS - 1, 2 * secure.PAIRS, 2 * secure.PAIRS + 1)):
        sample = noise.draw(step, count)
        assert sample.shape == (count,) and bool((sample == sample.round()).all())
        assert count < 10 or len(np.unique(sample.numpy())) > count / 20
    with pytest.raises(RuntimeError, match="already drawn"):
        noise.draw(0, 1)


def test_two_processes_never_share_noise() -> None:
    assert not np.array_equal(
        SecureNoise(Keystream(), MIDDLE).draw(0, 100), SecureNoise(Keystream(), MIDDLE).draw(0, 100)
    )


def test_the_key_is_neither_shown_nor_pickled() -> None:
    key = bytes(range(7, 39))
    noise = SecureNoise(Keystream(test_key=key), MIDDLE)
    assert key.hex() not in repr(noise) and repr(key) not in repr(vars(noise))
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(noise)


@pytest.mark.parametrize("scale", [0.0, 2.0**-11, 2.0**37, float("nan"), float("inf"), -5000.0])
def test_scales_that_the_proof_does_not_cover_are_refused(scale: float) -> None:
    with pytest.raises(ConfigError, match=r"privacy.noise_multiplier=.* grid steps"):
        SecureNoise(Keystream(), scale)


def test_distance_is_negligible_and_counts_every_coordinate() -> None:
    noise = SecureNoise(Keystream(), MIDDLE)
    assert 0 < noise.distance(10**12) < 1e-17
    assert noise.distance(2 * 10**6) == 2 * noise.distance(10**6)
