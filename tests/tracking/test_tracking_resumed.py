"""A run that goes on stays one run of the tracking store: no point lost, none there twice."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dptrain.cli import run
from dptrain.config_tracking import TrackingConfig
from dptrain.run_folder import read_json
from dptrain.tracking.choose import make_tracker
from dptrain.tracking.mlflow import MlflowTracker
from dptrain.tracking.state import STATE, State, read_state
from dptrain.training import loop
from dptrain.training.loop import Trainer

DEAD = "http://127.0.0.1:9"  # the discard port; nothing listens


def first_part(store: Path, folder: Path, steps: int = 2) -> tuple[MlflowTracker, State]:
    """A run that was killed after its points had arrived."""
    (folder / "internal").mkdir(parents=True)
    (folder / "plan.json").write_text("{}")
    tracker = MlflowTracker(f"sqlite:///{store}", "digits")
    tracker.start("run-1", {"batch": "256"}, {"kept": "yes"}, "training")
    tracker.artifact(folder / "plan.json")
    for step in range(1, steps + 1):
        tracker.log(step, {"epsilon": step / 10}, float(step))
    assert tracker._outbox is not None and tracker._outbox.close(10.0)
    state = read_state(folder / STATE)
    assert state is not None and state.run_id == tracker.run_id
    return tracker, state


def go_on(store: Path, folder: Path, state: State, steps: int = 4) -> Any:
    tracker = make_tracker(TrackingConfig(uri=f"sqlite:///{store}", experiment="digits"), earlier=state)
    tracker.start("run-1", {"batch": "7"}, {"part": "two"}, "training again")
    tracker.artifact(folder / "plan.json")
    for step in range(1, 4):  # metrics.jsonl knows of a third that the store missed
        tracker.log_again(step, {"epsilon": step / 10}, float(step))
    for step in range(4, steps + 1):
        tracker.log(step, {"epsilon": step / 10}, float(step))
    assert tracker.finish("finished")
    return tracker


def history(tracker: MlflowTracker, run_id: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in tracker._client.get_metric_history(run_id, "epsilon"))


def test_the_second_part_lands_in_the_same_run(store: Path, tmp_path: Path) -> None:
    first, state = first_part(store, tmp_path / "r")
    second = go_on(store, tmp_path / "r", state)
    assert second.run_id == first.run_id
    assert history(first, state.run_id or "") == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    found = first._client.get_run(state.run_id)
    assert found.info.status == "FINISHED" and found.data.params == {"batch": "256"}
    assert (found.data.tags["kept"], found.data.tags["part"]) == ("yes", "two")
    kept = read_state(tmp_path / "r" / STATE)
    assert kept is not None and kept.complete and kept.points == 4


def test_a_run_that_was_deleted_meanwhile_is_sent_as_a_new_one_and_told_in_one_line(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, state = first_part(store, tmp_path / "r")
    first._client.delete_run(state.run_id)
    second = go_on(store, tmp_path / "r", state)
    assert second.run_id not in (None, first.run_id)
    assert history(first, second.run_id) == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert first._client.get_run(second.run_id).data.params == {"batch": "7"}
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(first.run_id) in said and str(second.run_id) in said
    third = go_on(store, tmp_path / "r", read_state(tmp_path / "r" / STATE) or state)
    assert third.run_id == second.run_id


def test_a_dead_server_at_the_resume_costs_nothing_and_forgets_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    (folder / "internal").mkdir(parents=True)
    (folder / "plan.json").write_text("{}")
    state = State(DEAD, "digits", "a1", 1000, "run-of-before", 2)
    tracker = make_tracker(TrackingConfig(uri=DEAD, experiment="digits"), earlier=state)
    assert isinstance(tracker, MlflowTracker)
    tracker._patience = 0.2
    assert tracker.start("run-1", {}, {}, "") == "run-of-before"
    tracker.artifact(folder / "plan.json")
    tracker.log_again(1, {"epsilon": 0.1}, 1.0)
    tracker.log(2, {"epsilon": 0.2}, 2.0)
    assert not tracker.finish("finished")
    kept = read_state(folder / STATE)
    assert kept is not None and kept.run_id == "run-of-before" and not kept.complete and kept.session == "a1"


def test_other_settings_make_a_run_of_their_own(store: Path) -> None:
    state = State(f"sqlite:///{store}", "digits", "a1", 1000, "before")
    same = make_tracker(TrackingConfig(experiment="digits"), earlier=state)
    assert same.uri == state.uri, "without an address, the store of the first part"
    for other in (replace(state, experiment="else"), replace(state, uri=DEAD)):
        tracker = make_tracker(TrackingConfig(uri=f"sqlite:///{store}", experiment="digits"), earlier=other)
        assert isinstance(tracker, MlflowTracker) and tracker._state.run_id is None


def test_a_stopped_run_and_its_resumption_are_one(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    honest = Trainer._clipped_sum

    def clipped_sum(self: Trainer, number: int, total: Any) -> Any:
        if number == 1:
            os.kill(os.getpid(), 15)
        return honest(self, number, total)

    steps = ["privacy.epochs=null", "privacy.steps=4", "privacy.epsilon=null", "privacy.noise_multiplier=3"]
    words = ["data=digits", "model=linear", *steps, "evaluation.every=1", "ledger.uri=none", "run.dir=r"]
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_clipped_sum", clipped_sum)
        assert run(["train", *words, "data.all_public=true", f"tracking.uri=sqlite:///{store}"]) == 0
    before = read_json(Path("r", "result.json"))
    assert before["status"] == "stopped"
    assert run(["train", "resume=r"]) == 0
    after = read_json(Path("r", "result.json"))
    assert (after["status"], after["mlflow_run_id"]) == ("finished", before["mlflow_run_id"])
    client = MlflowTracker(f"sqlite:///{store}", "x")
    client._connect()
    points = sorted(m.step for m in client._client.get_metric_history(after["mlflow_run_id"], "test_accuracy"))
    assert points == [1, 2, 3, 4]
    assert client._client.get_run(after["mlflow_run_id"]).info.status == "FINISHED"
