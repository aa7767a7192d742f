"""The benchmark's parts: private steps are the loop's own, guesses are straight lines, no machine is overfilled."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from dptrain.compose import compose
from dptrain.training import bench_batch, bench_costs
from dptrain.training.bench import open_bench
from dptrain.training.bench_engine import Deadline, Guess, interval, measure_engine
from dptrain.training.bench_step import PlainStep, PrivateStep
from dptrain.training.bench_text import bench_text
from dptrain.training.made_up import made_up_batch
from dptrain.training.setup import Setup

SOON = ["privacy.epsilon=null", "privacy.noise_multiplier=1", "privacy.epochs=null", "privacy.steps=4"]


def setup(*overrides: str) -> Setup:
    return open_bench(compose("bench", [*SOON, "execution.physical_batch_size=32", *overrides]))


def test_made_up_rows_have_the_declared_shape_and_all_classes() -> None:
    batch = made_up_batch(setup(), 32, 3)
    assert batch.inputs.shape == (32, 1, 8, 8) and set(batch.targets.tolist()) == set(range(10))
    assert torch.bincount(batch.unit).tolist() == [3] * 10 + [2]
    assert torch.allclose(torch.zeros(11).index_add_(0, batch.unit, batch.weight), torch.ones(11))


def test_steps_are_counted_and_leave_the_model_of_the_setup_alone() -> None:
    made = setup()
    before = [p.clone() for p in made.module.parameters()]
    batch, private, seen = made_up_batch(made, 32), PrivateStep(made, "bookkeeping"), []
    private.run(batch, lambda: seen.append(1) or len(seen) < 3)
    private.steps(batch, 2)
    assert len(seen) == 3
    PlainStep(made).step(batch)
    assert all(torch.equal(a, b) for a, b in zip(before, made.module.parameters(), strict=True))
    assert all(p.grad is None for p in made.module.parameters())


def test_a_guess_is_a_straight_line_that_never_falls() -> None:
    guess = Guess((2, 4), (1.0, 2.0), (10.0, 8.0))
    assert guess.seconds_of(32) == pytest.approx(16.0)
    assert guess.nbytes_of(32) == 10.0
    assert Guess((1, 1), (1.0, 3.0), (1.0, 1.0)).seconds_of(8) == 3.0


def test_the_interval_holds_the_median_and_narrows() -> None:
    low, high = interval([1.0, 1.1, 1.2, 1.3, 5.0])
    assert 1.0 <= low <= 1.2 <= high <= 5.0
    assert interval([2.0] * 5) == (2.0, 2.0)


def test_a_refusal_and_a_passed_deadline_are_one_line_each() -> None:
    made = setup("execution.dtype=bfloat16")
    batch = made_up_batch(made, 32)
    found = measure_engine(made, "opacus_ghost", batch, 1.0, Deadline(time.monotonic() + 60))
    assert "execution.dtype=bfloat16" in found["refused"] and "\n" not in found["refused"]
    late = measure_engine(made, "bookkeeping", batch, 1.0, Deadline(time.monotonic() - 1))
    assert late == {"refused": "not timed: bench.seconds are used up"}


def test_an_engine_that_would_not_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    made = setup()
    monkeypatch.setattr("dptrain.training.bench_engine.free_memory", lambda device: 1)
    found = measure_engine(made, "bookkeeping", made_up_batch(made, 32), 1.0, Deadline(time.monotonic() + 60))
    assert "32 rows would take about" in found["refused"]


@pytest.mark.parametrize(
    ("peaks", "limit", "rows", "stopped_by"),
    [
        ({32: 10, 64: 20, 128: 40}, 50, 128, "memory"),
        ({32: 10, 64: 20, 128: 40}, 1000, 128, "time"),
        ({32: 100, 16: 60, 8: 40}, 50, 8, "memory"),
        ({32: None, 16: None, 8: 40}, 50, 8, "memory"),
        ({32: 1, 64: 1, 128: 1, 256: 1, 512: 1, 1024: 1, 2048: 1}, 1000, 2048, "data"),
        (dict.fromkeys((32, 16, 8, 4, 2, 1)), 50, None, "memory"),
    ],
)
def test_the_largest_batch_stays_within_the_limit(
    peaks: dict[int, int | None], limit: int, rows: int | None, stopped_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attempt(_setup: Setup, _name: str, size: int) -> dict:
        slow = size == 128 and stopped_by == "time"
        return {"rows": size, "peak_mib": peaks[size], "seconds": 1e9 if slow else 0.0}

    made = setup(f"execution.memory_limit={limit}")
    monkeypatch.setattr(bench_batch, "_try", attempt)
    found = bench_batch.largest_batch(
        made, "bookkeeping", attempt(made, "bookkeeping", 32), Deadline(time.monotonic() + 60)
    )
    assert (found["rows"], found["stopped_by"]) == (rows, stopped_by)
    assert [one["rows"] for one in found["tried"]] == list(peaks)


def test_costs_leave_nothing_in_the_users_own_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPTRAIN_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    costs = bench_costs.step_costs(setup(), planning=1.0)
    assert set(costs) == {"noise_fast_ms", "noise_secure_ms", "planning_ms", "commit_ms", "logging_ms"}
    assert all(value > 0 for value in costs.values())
    assert costs["planning_ms"] >= 1e3 / 4
    assert list(tmp_path.iterdir()) == []
    assert bench_costs.ledger_ms(5.0, 20.0) == 1.0 and bench_costs.ledger_ms(5.0, 1000.0) == 5.0


def test_text_of_a_bench_that_measured_nothing_still_reads() -> None:
    found = {
        "model": "m", "data": "d", "parameters": 3, "row": [4], "rows": 8, "rows_per_unit": 2, "device": "cpu",
        "dtype": "float32", "clock": "c", "noise": "secure", "chosen": "vmap", "plain": {"peak_mib": 0.1},
        "engines": {"vmap": {"refused": "not timed"}}, "bookkeeping": {}, "largest_batch": None,
        "costs": {"refused": "why"}, "steps": 2, "seconds": 5.0,
    }  # fmt: skip
    text = bench_text(found)
    assert "no private row was read" in text and "of 2 rows a unit" in text and "not measured (why)" in text
