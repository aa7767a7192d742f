"""Runs that end otherwise than planned: Ctrl-C, a full disk, more rows a batch than there are."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dptrain.cli import run
from dptrain.run_folder import read_json

PROGRAM = "import sys; from dptrain.cli import main; main(sys.argv[1:])"
PRICED = ["privacy.epsilon=null", "privacy.noise_multiplier=2"]
"""No noise is searched for: a process of its own starts sooner."""
LONG = ["train", "experiment=quickstart", "tracking=none", "run.dir=out", "privacy.epochs=1000", "evaluation.every=20"]


def start(folder: Path, arguments: list[str], **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_usable_folder_with_the_right_epsilon(number: signal.Signals, tmp_path: Path) -> None:
    process = start(tmp_path, LONG)
    metrics = tmp_path / "out" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (metrics.is_file() and metrics.read_text().count("\n") >= 2):
        time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert "stopped" in out
    result = read_json(tmp_path / "out" / "result.json")
    plan = read_json(tmp_path / "out" / "plan.json")
    statement = read_json(tmp_path / "out" / "checkpoint" / "statement.json")
    assert result["status"] == "stopped"
    assert 0 < result["steps"] < plan["steps"]
    assert statement["guarantee"]["claim"] == "stopped_early"
    assert result["epsilon"] == statement["guarantee"]["epsilon"] < plan["epsilon"]
    last = json.loads(metrics.read_text().splitlines()[-1])
    assert last["step"] == result["steps"]
    assert last["epsilon"] == result["epsilon"]

    import numpy as np

    import dptrain

    assert dptrain.load(tmp_path / "out").predict(np.zeros((1, 1, 8, 8))).shape == (1,)


@pytest.mark.parametrize("size", [200, 5_000, 25_000])
def test_a_full_disk_is_one_line_and_leaves_no_half_bundle(size: int, tmp_path: Path) -> None:
    """No file may grow beyond a few bytes, a plan, or the metrics: wherever it stops, nothing is half there."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    arguments = ["train", "experiment=quickstart", "tracking=none", "run.dir=out", "privacy.epochs=1", *PRICED]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    process = start(tmp_path, arguments, preexec_fn=limit, env=environment)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 2, err
    assert "Traceback" not in err
    last = err.rstrip().splitlines()[-1]
    assert last.startswith("dptrain: error: "), err
    assert "File too large" in last
    assert not (tmp_path / "out" / "checkpoint").exists()
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_a_batch_larger_than_the_data_warns_and_shows_q(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["experiment=quickstart", "tracking=none", "privacy.expected_batch_size=9000", "privacy.epochs=1"]
    assert run(["train", *arguments, "run.dir=out"]) == 0
    assert "q=1" in capsys.readouterr().err
    assert read_json(tmp_path / "out" / "plan.json")["sampling_rate"] == 1.0
    assert run(["plan", *arguments]) == 0
    assert "q=1" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_number_formats_train(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["experiment=quickstart", "tracking=none", f"execution.dtype={dtype}", "privacy.epochs=6"]
    assert run(["train", *arguments, "run.dir=out"]) == 0
    assert read_json(tmp_path / "out" / "result.json")["metrics"]["test_accuracy"] > 0.4
    assert run(["audit", "run=out"]) == 0
