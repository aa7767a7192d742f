"""A tracking server that is killed, slow, gone, or that hangs up: no point is lost or doubled, and no one waits."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from dptrain.cli import run as dptrain
from dptrain.run_folder import open_run
from dptrain.tracking import outbox
from dptrain.tracking.attach import log_internal
from dptrain.tracking.metrics_log import MetricsLog, read_metrics
from dptrain.tracking.mlflow import MlflowTracker
from dptrain.tracking.state import STATE, read_state

SERVER = Path(__file__).with_name("tracking_server.py")
STALL = 0.1
"""Most seconds that a call on the training path may take."""


class Server:
    """The little server as a process of its own, on one port for good."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri, self.file = f"http://127.0.0.1:{self.port}", folder / "server.jsonl"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        command = [sys.executable, "-I", "-S", str(SERVER), str(self.port), str(self.file), *options]
        self.process = subprocess.Popen(command)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError("the test's server did not come up")

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def rows(self, kind: str) -> list[dict[str, object]]:
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        return [row for row in map(json.loads, lines) if row["kind"] == kind]

    def points(self) -> Counter[tuple[str, int, float]]:
        return Counter((str(r["key"]), int(str(r["step"])), float(str(r["value"]))) for r in self.rows("point"))


@pytest.fixture
def server(tmp_path: Path):
    made = Server(tmp_path)
    yield made
    made.kill()


class Run:
    """What training does with a tracker, without the training: a record on disk, then to the tracker."""

    def __init__(self, folder: Path, uri: str, patience: float = 10.0) -> None:
        (folder / "internal").mkdir(parents=True)
        (folder / "plan.json").write_text("{}")
        self.folder, self.step, self.longest = folder, 0, 0.0
        self.begun = time.monotonic()
        self.log = MetricsLog(folder / "metrics.jsonl")
        self.tracker = MlflowTracker(uri, "faults", patience)
        self.tracker._connect()  # loading MLflow is no fault of the server's
        self.timed(lambda: self.tracker.start("run", {"a": "1"}, {}, ""))
        self.timed(lambda: self.tracker.artifact(folder / "plan.json"))

    def timed(self, call) -> None:
        begun = time.perf_counter()
        call()
        self.longest = max(self.longest, time.perf_counter() - begun)

    def record(self) -> None:
        self.step += 1
        record = {"step": self.step, "seconds": round(time.monotonic() - self.begun, 3)}
        numbers = {"epsilon": self.step / 7, "public_loss": 1 / self.step}
        self.log.append(record | numbers)
        self.timed(lambda: self.tracker.log(self.step, numbers, record["seconds"]))

    def go_on(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.record()
            time.sleep(0.01)

    def truth(self) -> Counter[tuple[str, int, float]]:
        records = read_metrics(self.folder / "metrics.jsonl")
        return Counter((k, r["step"], r[k]) for r in records for k in ("epsilon", "public_loss"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches and attempts follow each other quickly, so that many of them meet a kill."""
    monkeypatch.setattr(outbox, "INTERVAL", 0.05)
    monkeypatch.setattr(outbox, "LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(outbox, "FIRST_PAUSE", 0.05)


def test_ten_kills_lose_and_double_nothing_and_stall_nobody(server: Server, tmp_path: Path, quick: None) -> None:
    server.start("drop=5")
    run = Run(tmp_path / "run", server.uri)
    for _ in range(10):
        run.go_on(0.4)
        server.kill()
        run.go_on(0.2)
        server.start("drop=5")
    run.go_on(0.3)
    assert run.tracker.finish("finished"), run.tracker.trouble
    lost, doubled = run.truth() - server.points(), server.points() - run.truth()
    print(f"\n10 kills, {run.truth().total()} points: {lost.total()} lost, {doubled.total()} doubled, ", end="")
    print(f"longest stall {1000 * run.longest:.2f} ms, {len(server.rows('run'))} run")
    assert run.truth().total() > 200
    assert not lost and not doubled
    assert len(server.rows("run")) == 1
    assert run.longest <= STALL
    state = read_state(run.folder / STATE)
    assert state is not None and state.complete and state.points == run.truth().total()


def test_a_server_that_is_gone_costs_nothing_and_sync_sends_all_once(
    server: Server, tmp_path: Path, quick: None, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path / "run", server.uri, patience=1.0)
    run.go_on(0.3)
    begun = time.monotonic()
    assert run.tracker.finish("stopped") is False
    assert time.monotonic() - begun < 9
    assert run.longest <= STALL
    assert run.tracker.trouble and "dptrain sync run=" in run.tracker.trouble and "\n" not in run.tracker.trouble
    assert dptrain(["sync", f"run={run.folder}"]) == 2  # still gone
    assert "did not take everything" in capfd.readouterr().err
    server.start("drop=2")
    for _ in range(2):
        assert dptrain(["sync", f"run={run.folder}"]) == 0, capfd.readouterr().err
        assert server.points() == run.truth()
        assert len(server.rows("run")) == 1
    assert server.rows("file")  # the plan


def test_a_slow_server_stalls_nobody(server: Server, tmp_path: Path, quick: None) -> None:
    server.start("slow=0.6")
    run = Run(tmp_path / "run", server.uri)
    run.go_on(2.0)
    assert run.longest <= STALL
    assert run.tracker.finish("finished"), run.tracker.trouble
    assert server.points() == run.truth()


def test_what_does_not_fit_the_queue_is_sent_by_sync(
    server: Server, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "MOST_WAITING", 20)
    run = Run(tmp_path / "run", server.uri, patience=5.0)
    for _ in range(60):
        run.record()
    server.start()
    assert run.tracker.finish("finished") is False
    assert server.points().total() < run.truth().total()
    assert dptrain(["sync", f"run={run.folder}"]) == 0
    assert server.points() == run.truth()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "run"),
        (["run=absent"], "run"),
        (["run=.", "tracking.allow_http=maybe"], "tracking.allow_http"),
        (["runs=."], "runs"),
    ],
)
def test_sync_says_no_in_one_line(
    words: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert dptrain(["sync", *words]) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"dptrain: error: {named}=") and err.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_server_that_only_the_folder_names_is_not_spoken_to(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "internal").mkdir()
    (tmp_path / "plan.json").write_text("{}")
    (tmp_path / "result.json").write_text(json.dumps({"tracking_uri": "https://tracker.example", "status": "finished"}))
    assert dptrain(["sync", f"run={tmp_path}"]) == 2
    assert "say tracking.uri=https://tracker.example" in capfd.readouterr().err


def test_internal_results_wait_in_the_internal_room(server: Server, tmp_path: Path, quick: None) -> None:
    server.start()
    run = Run(tmp_path / "run", server.uri)
    run.record()
    assert run.tracker.finish("finished")
    server.kill()
    result = {"run_id": "r", "status": "finished", "steps": 1, "experiment": "faults"}
    result |= {"mlflow_run_id": run.tracker.run_id, "tracking_uri": server.uri}
    (run.folder / "result.json").write_text(json.dumps(result))
    folder = open_run(str(run.folder))
    (folder.internal_audit).write_text("{}")
    assert log_internal(folder, {"auc": 0.5}, [folder.internal_audit], "note", server.uri) is False
    assert len(list(folder.internal.glob("unsent-*.json"))) == 1
    server.start()
    for _ in range(2):
        assert dptrain(["sync", f"run={run.folder}"]) == 0
    assert list(folder.internal.glob("unsent-*.json")) == []
    assert server.points() == run.truth() + Counter({("auc", 1, 0.5): 1})
    assert len(server.rows("run")) == 2
