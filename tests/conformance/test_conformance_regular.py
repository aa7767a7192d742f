"""Noise that is too regular or too wild: exact laws hold on normals, and each kind of regularity is named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dptrain.conformance.regular import least, product_p, regularity


def normals(steps: int = 64, width: int = 1200, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((steps, width))


def test_laws_are_those_of_normals() -> None:
    """Of 60 samples, every law's p is below 0.05 about as often as it says: at most 30 % here (3 expected of 60; more
    than 18 with probability below 1e-9 each), and no sample is accused at 1e-7."""
    low: dict[str, int] = {}
    for seed in range(60):
        laws = regularity(normals(40, 300, seed), "steps")
        assert least("noise", laws, 1e-7, "").passed
        for law in laws:
            low[law.name] = low.get(law.name, 0) + (law.p < 0.05)
    assert max(low.values()) <= 18


def _pairs(x: np.ndarray) -> np.ndarray:
    x[:, 1::2] = 0.1 * x[:, ::2] + np.sqrt(1 - 0.01) * x[:, 1::2]
    return x


def _opposite_later(x: np.ndarray) -> np.ndarray:
    x[1::2] = -0.2 * x[::2] + np.sqrt(1 - 0.04) * x[1::2]
    return x


def _balanced(x: np.ndarray) -> np.ndarray:
    """Norms of eight coordinates that are always the same."""
    cut = x.reshape(len(x), -1, 8)
    return (cut / np.linalg.norm(cut, axis=2, keepdims=True) * np.sqrt(8)).reshape(x.shape)


def _by_turns(x: np.ndarray) -> np.ndarray:
    x[::2] *= 1.03
    x[1::2] *= np.sqrt(2 - 1.03**2)
    return x


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x / np.linalg.norm(x, axis=1, keepdims=True) * np.sqrt(x.shape[1]),
        lambda x: x - x.mean(1, keepdims=True),
        lambda x: x - x.mean(0, keepdims=True),
        lambda x: x / x.std(0, keepdims=True),
        _pairs,
        _opposite_later,
        _balanced,
        _by_turns,
        lambda x: np.where(np.arange(x.size).reshape(x.shape) == 5, np.nan, x),
    ],
    ids=["norms", "means", "over steps", "spread", "pairs", "opposite", "blocks", "by turns", "not numbers"],
)
def test_regular_noise_is_found(change: Callable[[np.ndarray], np.ndarray]) -> None:
    assert least("noise", regularity(normals(), "steps"), 1e-7, "").passed
    assert least("noise", regularity(change(normals()), "steps"), 1e-7, "").passed is False


def test_the_bound_on_products_of_neighbours_is_one() -> None:
    """p is at least the share of sums beyond: of 20,000, so that 1e-3 is told to a tenth."""
    values = np.random.default_rng(1).standard_normal((20_000, 50))
    sums = np.abs((values[:, 1:] * values[:, :-1]).sum(1))
    for level in (10.0, 20.0, 25.0):
        assert product_p(level, 50) >= float((sums > level).mean())
    assert product_p(0.0, 50) == 1.0 and product_p(60.0, 50) < 1e-7
