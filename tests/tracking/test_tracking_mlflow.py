from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dptrain.config_tracking import TrackingConfig
from dptrain.errors import ClaimRejected, ConfigError
from dptrain.tracking.budget import statement_tags
from dptrain.tracking.choose import make_tracker
from dptrain.tracking.mlflow import MlflowTracker
from dptrain.tracking.tracker import NullTracker

DEAD = "http://127.0.0.1:9"  # the discard port; nothing listens


def client_of(tracker: MlflowTracker) -> Any:
    tracker._connect()
    return tracker._client


def test_a_run_arrives_whole(store: Path, tmp_path: Path) -> None:
    tracker = MlflowTracker(f"sqlite:///{store}", "digits")
    params = {f"key.{index}": "x" * 7000 for index in range(150)}
    run_id = tracker.start("run-1", params, {"dp.unit": "record"}, "the promise")
    assert run_id is not None and run_id == tracker.run_id
    for step in range(40):
        tracker.log(step, {"epsilon": step / 10, "test_accuracy": 0.5, "odd name?": 1.0}, seconds=float(step))
    (tmp_path / "plan.json").write_text("{}")
    tracker.artifact(tmp_path / "plan.json", "promise")
    assert tracker.finish("stopped")
    run = client_of(tracker).get_run(run_id)
    assert run.info.status == "KILLED" and run.info.run_name == "run-1"
    assert len(run.data.params) == 150 and len(run.data.params["key.0"]) == 6000
    assert run.data.tags["dp.unit"] == "record" and run.data.tags["mlflow.note.content"] == "the promise"
    history = {name: client_of(tracker).get_metric_history(run_id, name) for name in ("epsilon", "test_accuracy")}
    points = {name: [(m.step, m.timestamp) for m in values] for name, values in history.items()}
    assert points["epsilon"] == points["test_accuracy"] and len(points["epsilon"]) == 40
    assert run.data.metrics["odd name_"] == 1.0
    assert [a.path for a in client_of(tracker).list_artifacts(run_id, "promise")] == ["promise/plan.json"]
    assert run.info.artifact_uri.startswith((tmp_path / "mlruns" / "digits").as_uri())


def test_tags_name_neither_person_nor_script(store: Path) -> None:
    tracker = MlflowTracker(f"sqlite:///{store}", "digits")
    run_id = tracker.start("run-1", {}, {}, "")
    assert tracker.finish("finished")
    tags = client_of(tracker).get_run(run_id).data.tags
    assert set(tags) == {"mlflow.runName", "mlflow.note.content", "mlflow.source.name", "dp.session"}
    assert tags["mlflow.source.name"] == "dptrain"


def test_a_later_command_goes_on_with_the_run(store: Path, tmp_path: Path) -> None:
    first = MlflowTracker(f"sqlite:///{store}", "digits")
    run_id = first.start("run-1", {}, {}, "")
    assert run_id and first.finish("stopped")
    later = MlflowTracker(f"sqlite:///{store}", "digits")
    later.attach(run_id)
    later.log(7, {"late": 2.0}, 0.0)
    (tmp_path / "report.html").write_text("<p>")
    later.artifact(tmp_path / "report.html")
    assert later.finish("finished")
    run = client_of(first).get_run(run_id)
    assert run.info.status == "KILLED" and run.data.metrics["late"] == 2.0


def test_a_bundle_becomes_a_version_each_time(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statement = {"schema": "s/2", "guarantee": {"epsilon": 1.5, "delta": 1e-5}, "unit": {"kind": "record"}}
    monkeypatch.setattr("dptrain.tracking.mlflow.verified_statement", lambda bundle: statement)
    bundle = tmp_path / "checkpoint"
    bundle.mkdir()
    (bundle / "model.json").write_text("{}")
    trackers = [MlflowTracker(f"sqlite:///{store}", "digits") for _ in range(2)]
    for tracker in trackers:
        assert tracker.start("run", {}, {}, "")
        tracker.register("digits-model", bundle)
        assert tracker.finish("finished"), tracker.trouble
    versions = client_of(trackers[0]).search_model_versions("name='digits-model'")
    assert sorted(int(v.version) for v in versions) == [1, 2]
    assert {v.run_id for v in versions} == {tracker.run_id for tracker in trackers}
    assert (Path(versions[0].source.removeprefix("file://")) / "model.json").is_file()
    assert sorted(str(tracker.registered) for tracker in trackers) == ["1", "2"]
    for version in versions:
        assert version.tags == statement_tags(statement)
        assert version.tags["dp.epsilon"] == "1.5" and len(version.tags["dp.statement_digest"]) == 64


def test_a_bundle_that_does_not_verify_becomes_no_version(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(bundle: Path) -> dict[str, Any]:
        raise ClaimRejected("checkpoint", bundle, "epsilon does not follow from the event", "do not register it")

    monkeypatch.setattr("dptrain.tracking.mlflow.verified_statement", refuse)
    tracker = MlflowTracker(f"sqlite:///{store}", "digits")
    run_id = tracker.start("run", {}, {}, "")
    with pytest.raises(ClaimRejected, match="does not follow"):
        tracker.register("liar", tmp_path)
    assert tracker.finish("finished") and run_id
    client = client_of(tracker)
    assert list(client.search_model_versions("name='liar'")) == []
    assert [model.name for model in client.search_registered_models()] == []
    assert client.list_artifacts(run_id) == []


def test_tags_may_follow_and_replace(store: Path) -> None:
    tracker = MlflowTracker(f"sqlite:///{store}", "digits")
    run_id = tracker.start("run-1", {}, {"dp.account": "old"}, "")
    tracker.tag({"dp.account": "adult", "dp.ledger_entry": "7", "dp.ledger_head": "x" * 9000})
    tracker.tag({})
    assert tracker.finish("finished"), tracker.trouble
    tags = client_of(tracker).get_run(run_id).data.tags
    assert (tags["dp.account"], tags["dp.ledger_entry"], len(tags["dp.ledger_head"])) == ("adult", "7", 8000)


def test_a_dead_server_costs_the_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dptrain.tracking.mlflow.verified_statement", lambda bundle: {})
    tracker = MlflowTracker(DEAD, "digits", patience=1.0)
    assert tracker.start("run", {"a": "1"}, {}, "") is None
    for step in range(50):
        begun = time.monotonic()
        tracker.log(step, {"epsilon": 0.1}, 0.0)
        assert time.monotonic() - begun < 0.1
    tracker.artifact(tmp_path / "absent")
    tracker.tag({"a": "b"})
    tracker.register("m", tmp_path)
    begun = time.monotonic()
    assert tracker.finish("finished") is False
    assert time.monotonic() - begun < 10
    assert tracker.trouble and "\n" not in tracker.trouble


def test_what_a_sick_store_missed_arrives_later(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = MlflowTracker(f"sqlite:///{store}", "digits")
    run_id = tracker.start("run", {}, {}, "")
    client = client_of(tracker)
    real, failures = client.log_batch, []

    def flaky(*args: Any, **kwargs: Any) -> Any:
        if len(failures) < 3:
            failures.append(1)
            raise OSError("gone for a while")
        return real(*args, **kwargs)

    monkeypatch.setattr(client, "log_batch", flaky)
    for step in range(5):
        tracker.log(step, {"epsilon": float(step)}, 0.0)
    assert tracker.finish("finished")
    assert len(failures) == 3 and tracker.trouble == "gone for a while"
    assert [m.value for m in client.get_metric_history(run_id, "epsilon")] == [0, 1, 2, 3, 4]


def test_what_is_refused_for_good_is_dropped_and_reported(store: Path, tmp_path: Path) -> None:
    tracker = MlflowTracker(f"sqlite:///{store}", "digits")
    run_id = tracker.start("run", {}, {}, "")
    tracker.artifact(tmp_path / "absent.json")
    tracker.log(1, {"epsilon": 1.0}, 0.0)
    assert tracker.finish("finished") is False
    assert client_of(tracker).get_run(run_id).data.metrics == {"epsilon": 1.0}
    assert client_of(tracker).get_run(run_id).info.status == "FINISHED"


def test_a_deleted_experiment_is_named(store: Path) -> None:
    tracker = MlflowTracker(f"sqlite:///{store}", "gone")
    tracker.start("run", {}, {}, "")
    tracker.finish("finished")
    client_of(tracker).delete_experiment(client_of(tracker).get_experiment_by_name("gone").experiment_id)
    with pytest.raises(ConfigError, match="'gone' was deleted"):
        MlflowTracker(f"sqlite:///{store}", "gone").start("run", {}, {}, "")


@pytest.mark.parametrize("uri", ["", "runs", "file:///tmp/x", "ftp://host", "sqlite://", "sqlite:///", "http://"])
def test_an_address_that_is_no_store_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError) as refused:
        MlflowTracker(uri, "digits")
    assert refused.value.field == "tracking.uri"


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes, quite long ones")
    with pytest.raises(ConfigError, match="not a sqlite database"):
        MlflowTracker(f"sqlite:///{path}", "digits")
    with pytest.raises(ConfigError, match="is a folder"):
        MlflowTracker(f"sqlite:///{tmp_path}", "digits")
    assert path.read_text() == "my notes, quite long ones"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt"]


def test_passwords_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = MlflowTracker("http://me:hunter2@127.0.0.1:9", "digits", patience=0.5)
    tracker.start("run", {}, {}, "")
    tracker.finish("failed")
    shown = f"{tracker.uri} {tracker.trouble} {tracker.open_command()} {tracker.link()}"
    assert "hunter2" not in shown and "127.0.0.1:9" in shown


def test_the_default_store_lies_in_the_directory_of_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tracker = MlflowTracker(None, "digits")
    monkeypatch.chdir("/")
    assert tracker.uri == f"sqlite:///{tmp_path}/mlflow.db"
    command = tracker.open_command()
    assert f"--backend-store-uri sqlite:///{tmp_path}/mlflow.db --host 127.0.0.1" in command
    assert command.startswith("MLFLOW_DISABLE_TELEMETRY=true ")


def test_settings_choose_the_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    none = make_tracker(TrackingConfig(name="none"))
    assert isinstance(none, NullTracker)
    assert none.start("r", {}, {}, "") is None and none.finish("finished") and none.open_command() is None
    inner = make_tracker(TrackingConfig(), internal=True)
    assert isinstance(inner, MlflowTracker) and inner._experiment == "dptrain-internal"
    assert list(tmp_path.iterdir()) == []


FIRST_USERS = """
import os, sys
from dptrain.tracking.mlflow import MlflowTracker, _import_mlflow
_import_mlflow(with_database=True)
gate, opened = os.pipe()
children = []
for number in range(8):
    child = os.fork()
    if child == 0:
        os.close(opened)
        os.read(gate, 1)  # all start together, when the parent closes its end
        try:
            tracker = MlflowTracker(sys.argv[1], "sweep")
            run_id = tracker.start(f"run-{number}", {"n": str(number)}, {}, "")
            tracker.log(0, {"epsilon": float(number)}, 0.0)
            os._exit(0 if tracker.finish("finished") and run_id else 1)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(2)
    children.append(child)
os.close(opened)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def test_eight_first_users_at_once_all_succeed(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    done = subprocess.run([sys.executable, "-c", FIRST_USERS, uri], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    client = client_of(MlflowTracker(uri, "sweep"))
    runs = client.search_runs([client.get_experiment_by_name("sweep").experiment_id])
    assert sorted(run.data.metrics["epsilon"] for run in runs) == [float(n) for n in range(8)]


SPY = """
import socket, sys, time
reached = []
def refuse(*args, **kwargs):
    reached.append(args)
    raise OSError("no network in this test")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from dptrain.tracking.mlflow import MlflowTracker
tracker = MlflowTracker(sys.argv[1], "digits")
tracker.start("run", {"a": "1"}, {"b": "2"}, "note")
tracker.log(1, {"epsilon": 1.0}, 0.0)
assert tracker.finish("finished"), tracker.trouble
from mlflow.telemetry.client import get_telemetry_client
from mlflow.environment_variables import MLFLOW_ALLOW_PICKLE_DESERIALIZATION as pickles
time.sleep(1)
print(bool(reached), pickles.get(), get_telemetry_client() is None)
"""


@pytest.mark.parametrize("opted_in", [False, True])
def test_telemetry_is_off_unless_asked_for(opted_in: bool, store: Path, tmp_path: Path) -> None:
    """MLflow is silent by itself under CI and pytest, so their variables are taken away first."""
    env = {key: os.environ[key] for key in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH") if key in os.environ}
    env |= {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    if opted_in:
        env["MLFLOW_DISABLE_TELEMETRY"] = "false"
    command = [sys.executable, "-c", SPY, f"sqlite:///{store}"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    contacted, loads_pickles, has_no_client = done.stdout.split()
    assert (contacted, loads_pickles) == (str(opted_in), "False")
    assert opted_in or has_no_client == "True"  # one that was asked for leaves again when it reaches nobody
    assert (tmp_path / "config" / "mlflow").exists() is opted_in
