"""What a search draws is drawn once and sealed; what it costs is what its plan says."""

from __future__ import annotations

import math
import stat
from pathlib import Path

import pytest

from dptrain.config_privacy import PrivacyConfig
from dptrain.config_tuning import TuningConfig
from dptrain.errors import BudgetRefused, ConfigError
from dptrain.keystream import Keystream
from dptrain.privacy import accounting
from dptrain.privacy.plan import compile_plan
from dptrain.privacy.selection import trials_with_mean
from dptrain.privacy.tuning import (
    Draws,
    alone,
    best_of,
    draw_candidates,
    fingerprint,
    grid_plan,
    seal,
    told_before,
    tuning_block,
    unseal,
)

TRIALS = trials_with_mean("geometric", 5)
SETTINGS = PrivacyConfig(epsilon=None, noise_multiplier=2.0, steps=20, epochs=None, expected_batch_size=50)


def test_candidates_are_within_their_axes_and_differ_from_run_to_run() -> None:
    drawn = [draw_candidates(TRIALS, [3, 1, 7], Keystream()) for _ in range(20)]
    assert all(0 <= place < size for c in drawn for row in c for place, size in zip(row, [3, 1, 7], strict=True))
    assert len(set(drawn)) > 10


def test_draws_are_sealed_once_and_read_back(tmp_path: Path) -> None:
    room = tmp_path / "search.json"
    draws = Draws(((0, 2), (1, 0)), fingerprint({"a": 1}, [["x"]], {"type": "gaussian"}), "run", 7, "rows")
    seal(room, draws)
    assert stat.S_IMODE(room.stat().st_mode) == 0o600
    assert unseal(room, draws.fingerprint) == draws
    with pytest.raises(ConfigError, match="never drawn twice"):
        seal(room, draws)
    other = fingerprint({"a": 2}, [["x"]], {"type": "gaussian"})
    with pytest.raises(BudgetRefused, match="other settings"):
        unseal(room, other)


def test_the_best_is_the_first_of_the_highest() -> None:
    assert best_of([0.2, 0.9, 0.9]) == 1
    assert best_of([math.nan, None, -5.0]) == 2
    assert best_of([None, math.nan]) == 0


def test_a_target_is_met_by_the_winner_not_by_one_trial() -> None:
    target = PrivacyConfig(epsilon=2.0, steps=20, epochs=None, expected_batch_size=50)
    plan, single = compile_plan(target, 1000, trials=TRIALS), compile_plan(target, 1000)
    assert plan.epsilon is not None and single.mechanism is not None and plan.mechanism is not None
    assert 1.98 < plan.epsilon <= 2.0
    assert alone(plan) < 1.5
    assert plan.mechanism.noise_multiplier > single.mechanism.noise_multiplier
    assert plan.mechanism.event()["type"] == "repeat_and_select"
    assert plan.odometer([1, 10, 20]) == [plan.epsilon] * 3
    lines = dict(told_before(plan, "random", None, Path("runs/r")))
    assert f"{plan.epsilon:.4f}" in lines["its winner"]
    assert f"{alone(plan):.4f}" in lines["one run"]


def test_a_grid_costs_the_composition_of_its_runs_whoever_wins() -> None:
    other = PrivacyConfig(epsilon=None, noise_multiplier=3.0, steps=40, epochs=None, expected_batch_size=50)
    plans = [compile_plan(SETTINGS, 1000), compile_plan(other, 1000), compile_plan(SETTINGS, 1000)]
    events = [plan.mechanism.event() for plan in plans if plan.mechanism is not None]
    price = accounting.epsilon(accounting.composed(events), plans[0].priced_delta)
    for winner in range(3):
        plan = grid_plan(plans, winner)
        assert plan.epsilon == pytest.approx(price, rel=1e-6)
        assert plan.steps == plans[winner].steps
    assert price > max(plan.epsilon or 0 for plan in plans)
    same = grid_plan([plans[0]] * 4, 2)
    assert same.mechanism is not None and same.mechanism.event() == accounting.self_composed(80, events[0]["event"])


def test_grids_of_different_promises_are_refused() -> None:
    plans = [
        compile_plan(SETTINGS, 1000),
        compile_plan(PrivacyConfig(epsilon=None, noise_multiplier=2.0, delta=1e-6), 1000),
    ]
    with pytest.raises(ConfigError, match="differ between runs"):
        grid_plan(plans, 0)


def test_the_statement_says_what_the_choice_cost() -> None:
    plan = compile_plan(SETTINGS, 1000, trials=TRIALS)
    block = tuning_block(plan, TuningConfig(strategy="random", mean_trials=5))
    assert block is not None
    assert block["epsilon_before"] < block["epsilon_after"] == plan.epsilon
    assert block["trials_distribution"] == "geometric, mean 5"
    assert tuning_block(plan, TuningConfig()) is None
    public = tuning_block(plan, TuningConfig(public=True))
    assert public is not None and public["public_only"] is True
