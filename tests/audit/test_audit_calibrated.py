"""The calibrated attack: takes out the ease of a class, judges no row that fitted, sees nothing in nothing."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dptrain.audit.attack import run_attacks, seconds_tier
from dptrain.audit.calibrated import applies, calibrated, class_laws
from dptrain.audit.verdict import verdict

EASE = np.array([-6.0, 0.0, 6.0])


def rows(count: int, gap: float, seed: int) -> tuple[NDArray, NDArray, NDArray]:
    """Logits whose margin is the ease of the class, plus noise of size 1, plus ``gap``."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, count)
    logits = np.zeros((count, 3))
    logits[np.arange(count), y] = EASE[y] + rng.normal(size=count) + gap
    return logits, y, np.arange(count)


def test_it_finds_more_where_classes_differ_in_ease() -> None:
    seen, held = rows(2000, 0.7, 1), rows(2000, 0.0, 2)
    found = run_attacks(*seen, *held, "multiclass", [0.01], 0.95)
    auc = {attack["name"]: attack["auc"]["value"] for attack in found["attacks"]}
    # one class alone: P(N(0.7, 1) > N(0, 1)) = 0.69; of 1,000 judged the standard error is 0.011
    assert auc["calibrated"] == pytest.approx(0.69, abs=0.05)
    assert auc["calibrated"] > auc["logit_difference"] + 0.05
    assert seconds_tier("multiclass", 2000) == list(auc)


def test_no_row_is_judged_that_fitted() -> None:
    """A held-out unit among the judged has the score that the others' law gives it, whatever it is itself."""
    seen, held = rows(50, 0.0, 3), rows(200, 0.0, 4)
    members, judged = calibrated(*seen, *held, "multiclass")
    assert (len(members), len(judged)) == (50, 100)
    fits = np.isin(held[2], np.random.default_rng(200).permutation(held[2])[:100])
    changed = held[0].copy()
    changed[~fits] += 1e3 * np.eye(3)[held[1][~fits]]
    again, moved = calibrated(*seen, changed, *held[1:], "multiclass")
    assert np.array_equal(members, again)
    assert (moved > judged + 100).all()


def test_nothing_is_found_in_nothing() -> None:
    """200 audits without a leak at 95 %: a claim of almost nothing is rejected in at most 5 % + 4 standard errors."""
    rejected = 0
    for seed in range(200):
        found = run_attacks(*rows(150, 0.0, 2 * seed), *rows(150, 0.0, 2 * seed + 1), "multiclass", [0.1], 0.95)
        rejected += verdict(found, 1e-9, 1e-9, 0.95)["rejected"]
    assert rejected <= 0.05 * 200 + 4 * (200 * 0.05 * 0.95) ** 0.5


def test_small_classes_have_the_law_of_all_and_infinite_scores_none() -> None:
    scores = np.concatenate([np.full(30, 5.0) + np.tile([-1.0, 1.0], 15), [100.0], [-np.inf]])
    centre, spread = class_laws(scores, np.array([0] * 30 + [1, 1]), 3)
    assert (centre[0], spread[0]) == (5.0, 1.0)
    assert centre[1] == centre[2] == np.mean(scores[:31])
    laws = class_laws(np.full(2, -np.inf), np.array([0, 1]), 2)
    assert np.isfinite(laws).all()


def test_where_it_is_not_tried() -> None:
    assert not applies("regression", 1000) and not applies("multiclass", 39) and applies("binary", 40)
    found = run_attacks(*rows(30, 0.0, 1), *rows(30, 0.0, 2), "multiclass", [0.1], 0.95)
    assert [attack["name"] for attack in found["attacks"]] == ["loss", "logit_difference"]


def test_units_of_several_rows_go_one_way_together() -> None:
    seen, held = rows(60, 0.0, 5), rows(180, 0.0, 6)
    units = np.repeat(np.arange(60), 3)
    members, judged = calibrated(seen[0], seen[1], np.repeat(np.arange(20), 3), held[0], held[1], units, "multiclass")
    assert (len(members), len(judged)) == (20, 30)
