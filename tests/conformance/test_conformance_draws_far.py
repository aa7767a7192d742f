"""Draws whose units hang together at some distance are found; honest ones are not, at the level stated."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dptrain.conformance import draws_far
from dptrain.conformance.draws_far import draws_far_apart, furthest
from dptrain.conformance.stand import Stand
from dptrain.data.sampler import PoissonSampler


def test_honest_draws_pass(stand: Stand) -> None:
    """False alarms: 4e-7."""
    assert draws_far_apart(stand).passed


def test_honest_inclusions_are_never_near_the_level() -> None:
    """400 crowds: the bound on p is at most 1 / 100 in no more of them than it may be (4, and three deviations)."""
    rng = np.random.default_rng(3)
    p = [furthest((rng.random(4000) < q).astype(float), q)[0] for q in (0.25, 0.02) for _ in range(200)]
    assert sum(one <= 0.01 for one in p) <= 10
    assert min(p) > 1e-4


@pytest.mark.parametrize("q", [0.25, 0.6])
def test_the_bound_is_one(q: float) -> None:
    """Against all 2^11 outcomes of eleven units, at every lag and mirror."""
    n = 11
    outcomes = np.array(list(product((0.0, 1.0), repeat=n)))
    chance = np.prod(np.where(outcomes > 0, q, 1 - q), axis=1)
    x = outcomes - q
    families = [((x[:, lag:] * x[:, :-lag]).sum(1), n - lag) for lag in range(1, n)]
    for place in range(1, 2 * n - 2):
        pairs = [(i, place - i) for i in range(n) if i < place - i < n]
        families.append((sum(x[:, i] * x[:, j] for i, j in pairs), len(pairs)))
    for sums, pairs in families:
        for value in np.unique(np.round(sums, 12)):
            beyond = sums >= value - 1e-9 if value > 0 else sums <= value + 1e-9
            exact = float(chance[beyond].sum())
            assert exact <= math.exp(draws_far._log_bound(float(value), pairs, q)) + 1e-9


def _filled_once(words: int) -> Callable[[Tensor], Tensor]:
    return lambda mask: mask[torch.arange(len(mask)) % words]


def _partly(mask: Tensor) -> Tensor:
    mask[600_000:612_000] = mask[1000:13_000]
    return mask


def _mirrored(mask: Tensor) -> Tensor:
    half = len(mask) // 2
    mask[len(mask) - half :] = mask[:half].flip(0)
    return mask


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_filled_once(1024), "apart"),
        (_filled_once(1 << 20), "1048576 apart"),
        (_partly, "apart"),
        (_mirrored, "together"),
    ],
    ids=["a buffer", "a large buffer", "one buffer in a hundred", "the other way round"],
)
def test_units_that_share_a_word_are_found(
    change: Callable[[Tensor], Tensor], named: str, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = PoissonSampler.draw

    def draw(self: Any, step: int) -> Tensor:
        mask = torch.zeros(self.num_units, dtype=torch.bool)
        mask[original(self, step)] = True
        return torch.nonzero(change(mask) if len(mask) > 1 << 20 else mask).flatten()

    monkeypatch.setattr(PoissonSampler, "draw", draw)
    found = draws_far_apart(stand)
    assert found.passed is False and named in found.says


def test_a_draw_that_comes_again_a_unit_further_is_found(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    original, kept = PoissonSampler.draw, dict[str, Tensor]()

    def draw(self: Any, step: int) -> Tensor:
        if step % 10 == 9 and "first" in kept:
            return (kept["first"] + 77) % self.num_units
        kept["first"] = original(self, step) if step == 0 else kept["first"]
        return kept["first"] if step == 0 else original(self, step)

    monkeypatch.setattr(PoissonSampler, "draw", draw)
    found = draws_far_apart(stand)
    assert found.passed is False and "apart" in found.says


def test_words_that_come_twice_are_found(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few words of a buffer are read again, by units of which hardly any is drawn: no sum shows it."""
    from dptrain.keystream import Stream

    original = Stream.fill

    def fill(self: Any, out: np.ndarray) -> np.ndarray:
        original(self, out)
        if len(out) > 5000:
            out[4001:4004] = out[17:20]
        return out

    monkeypatch.setattr(Stream, "fill", fill)
    found = draws_far_apart(stand)
    assert found.passed is False and "come twice" in found.says
