"""Planted canaries: no password, token or key is in a run folder, a store, an error line or anything printed."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from dptrain.cli import run as dptrain
from dptrain.config_compare import RegisterConfig
from dptrain.config_tracking import TrackingConfig, shown
from dptrain.errors import ConfigError
from dptrain.tracking.answers import reason

CANARY = "canary-Zq7xW3vK"
PROGRAM = "import sys; from dptrain.cli import main; main(sys.argv[1:])"
TINY = ["train", "experiment=quickstart", "privacy.epochs=0.5", "run.dir=out"]


@pytest.mark.parametrize(
    "override",
    [
        f"tracking.uri=https://me:{CANARY}@tracker.example",
        f"tracking.uri=https://{CANARY}@tracker.example",
        f"tracking.uri=https://me:a/{CANARY}@tracker.example",
        f"tracking.uri=http://me:{CANARY}@127.0.0.1:9",
        f"tracking.uri=ftp://me:{CANARY}@tracker.example",
        f"tracking.uri=postgresql+psycopg2://me:{CANARY}@db/x",
        f"'tracking.uri=https://tracker.example/?access_token={CANARY}'",
        f"ledger.uri=postgresql+psycopg://me:{CANARY}@db/x",
        f"ledger.uri=postgresql+psycopg://me:a/b@{CANARY}@db/x",
        f"ledger.uri=postgresql+psycopg://me@db/x?password={CANARY}",
    ],
)
@pytest.mark.parametrize("command", ["train", "plan"])
def test_an_address_with_a_password_is_refused_and_not_repeated(
    command: str, override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    key, _, value = override.strip("'").partition("=")
    assert dptrain([command, "experiment=quickstart", f"{key}='{value}'"]) == 2
    out, err = capfd.readouterr()
    assert err.startswith(f"dptrain: error: {key}=") and err.count("\n") == 1
    assert CANARY not in out + err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("uri", ["http://tracker.example:5000", "HTTP://10.0.0.7", "http://127.0.0.1.tracker.example"])
def test_plain_http_to_another_host_is_refused_before_anything_is_spent(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert dptrain([*TINY, f"tracking.uri='{uri}'"]) == 2
    err = capfd.readouterr().err
    assert err.startswith("dptrain: error: tracking.uri=") and err.count("\n") == 1
    assert "tracking.allow_http=true" in err
    assert os.listdir(tmp_path) == [] and not list(Path(os.environ["DPTRAIN_HOME"]).iterdir())


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:9", "http://localhost:9", "http://[::1]:9", "https://tracker.example"]
)
def test_this_machine_and_tls_are_welcome(uri: str) -> None:
    assert TrackingConfig(uri=uri).uri == uri


def test_plain_http_may_be_named() -> None:
    assert TrackingConfig(uri="http://tracker.example", allow_http=True).allow_http
    with pytest.raises(ConfigError, match="allow_http"):
        TrackingConfig(uri="http://tracker.example")


def test_register_speaks_plain_http_to_another_host_only_where_that_is_named() -> None:
    uri = "http://tracker.example"
    with pytest.raises(ConfigError, match=r"^uri=.* say allow_http=true$"):
        RegisterConfig(path="runs/RUN", name="model", uri=uri)
    assert RegisterConfig(path="runs/RUN", name="model", uri=uri, allow_http=True).allow_http
    with pytest.raises(ConfigError, match="holds a password or token"):
        RegisterConfig(path="runs/RUN", name="model", uri=f"https://me:{CANARY}@tracker.example")


def test_a_secret_in_a_server_s_answer_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", CANARY)
    text = reason(RuntimeError(f"bad header Bearer {CANARY} for https://u:{CANARY}@host/?token={CANARY}"))
    assert CANARY not in text and "bad header" in text
    assert CANARY not in shown(f"postgresql://u:{CANARY}@h/db?password={CANARY}")


def test_no_secret_is_in_a_run_its_store_or_its_output(tmp_path: Path) -> None:
    """A real run with every secret in its environment, copied to a real store; then the server is gone."""
    key = secrets.token_bytes(32)
    env = os.environ | {
        "MLFLOW_TRACKING_TOKEN": f"{CANARY}-token",
        "MLFLOW_TRACKING_USERNAME": f"{CANARY}-user",
        "MLFLOW_TRACKING_PASSWORD": f"{CANARY}-password",
        "PGPASSWORD": f"{CANARY}-pg",
        "SEALING": key.hex(),
        "OMP_NUM_THREADS": "1",
    }
    said = b""
    for name, uri in (("kept", f"sqlite:///{tmp_path}/mlflow.db"), ("gone", "http://127.0.0.1:9")):
        words = ["train", "experiment=quickstart", "privacy.epochs=0.5", f"run.dir={name}", f"tracking.uri={uri}"]
        words += ["checkpoint.key=env:SEALING", "privacy.epsilon=null", "privacy.noise_multiplier=2"]
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *words], cwd=tmp_path, env=env, capture_output=True, timeout=240
        )
        assert done.returncode == 0, done.stderr.decode()
        said += done.stdout + done.stderr
        assert (tmp_path / name / "result.json").is_file()
    reported = subprocess.run(
        [sys.executable, "-c", PROGRAM, "report", "run=kept"], cwd=tmp_path, env=env, capture_output=True, timeout=240
    )
    assert reported.returncode == 0, reported.stderr.decode()
    said += reported.stdout + reported.stderr
    assert b"dptrain sync run=gone" in said
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"config.yaml", "plan.json", "metrics.jsonl", "report.html", "mlflow.db"} <= {file.name for file in files}
    for planted in (CANARY.encode(), key, key.hex().encode()):
        assert planted not in said
        for file in files:
            assert planted not in file.read_bytes(), file
