"""The same against MLflow's own server, killed with all its workers in mid-run."""

from __future__ import annotations

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
from dptrain.tracking.mlflow import MlflowTracker


def start(folder: Path, port: int) -> subprocess.Popen[bytes]:
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files")]
    command = [sys.executable, "-m", "mlflow", "server", *store, "--port", str(port), "--workers", "1"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=folder, stdout=quiet, stderr=quiet, start_new_session=True)
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    raise AssertionError("mlflow server did not come up")


@pytest.mark.slow
def test_mlflow_s_own_server_killed_in_mid_run_has_every_point_once(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path / "run"
    (folder / "internal").mkdir(parents=True)
    (folder / "plan.json").write_text("{}")
    lines = (folder / "metrics.jsonl").open("w")
    server = start(tmp_path, port)
    try:
        tracker = MlflowTracker(f"http://127.0.0.1:{port}", "digits")
        tracker.start("run", {"a": "1"}, {}, "")
        tracker.artifact(folder / "plan.json")
        longest = 0.0
        for step in range(1, 401):
            lines.write(f'{{"step": {step}, "seconds": {step / 100}, "epsilon": {step / 7!r}}}\n')
            begun = time.perf_counter()
            tracker.log(step, {"epsilon": step / 7}, step / 100)
            longest = max(longest, time.perf_counter() - begun)
            if step == 200:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
            time.sleep(0.02)
        lines.close()
        assert tracker.finish("finished") is False
        assert longest <= 0.1
        server = start(tmp_path, port)
        for _ in range(2):
            assert dptrain(["sync", f"run={folder}"]) == 0
        client = tracker._client
        experiment = client.get_experiment_by_name("digits").experiment_id
        runs = client.search_runs([experiment])
        assert len(runs) == 1
        points = Counter((m.step, m.value) for m in client.get_metric_history(runs[0].info.run_id, "epsilon"))
        assert points == Counter({(step, step / 7): 1 for step in range(1, 401)})
        print(f"\n400 points, 0 lost, 0 doubled, longest stall {1000 * longest:.2f} ms")
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
