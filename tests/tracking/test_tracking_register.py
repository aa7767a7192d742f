from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dptrain.cli import run
from dptrain.errors import ClaimRejected, ConfigError
from dptrain.run_folder import write_json
from dptrain.tracking.budget import statement_digest
from dptrain.tracking.mlflow import MlflowTracker
from dptrain.tracking.register import register_model

STATEMENT: dict[str, Any] = {
    "schema": "dptrain.statement/2",
    "sentence": "Training was private.",
    "guarantee": {"epsilon": 1.5, "delta": 1e-5},
    "unit": {"kind": "record"},
    "composition": {"ledger_id": "a" * 32, "entry": 7, "account": "adult"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with a bundle, never tracked."""
    bundle = tmp_path / "run" / "checkpoint"
    bundle.mkdir(parents=True)
    write_json(bundle / "statement.json", STATEMENT)
    write_json(bundle / "model.json", {})
    write_json(tmp_path / "run" / "result.json", {"run_id": "r", "mlflow_run_id": None, "tracking_uri": None})
    return tmp_path / "run"


@pytest.fixture
def verifies(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("mlflow", "register"):
        monkeypatch.setattr(f"dptrain.tracking.{module}.verified_statement", lambda bundle: STATEMENT)


@pytest.fixture
def is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(bundle: Path) -> dict[str, Any]:
        raise ClaimRejected("checkpoint", bundle, "its signature does not hold", "do not register it")

    for module in ("mlflow", "register"):
        monkeypatch.setattr(f"dptrain.tracking.{module}.verified_statement", refuse)


def client_of(store: Path) -> Any:
    tracker = MlflowTracker(f"sqlite:///{store}", "any")
    tracker._connect()
    return tracker._client


@pytest.mark.usefixtures("verifies")
@pytest.mark.parametrize("part", ["", "checkpoint"])
def test_a_bundle_that_was_never_tracked_gets_a_run_of_its_own(folder: Path, store: Path, part: str) -> None:
    made = register_model(folder / part, "scorer", f"sqlite:///{store}", "digits")
    client = client_of(store)
    version = client.get_model_version("scorer", made["version"])
    assert (made["version"], version.run_id) == ("1", made["run_id"])
    assert version.tags["dp.statement_digest"] == statement_digest(STATEMENT)
    assert version.tags["dp.ledger_entry"] == "7" and version.tags["dp.account"] == "adult"
    tracked = client.get_run(made["run_id"])
    assert tracked.data.tags["dp.statement_digest"] == statement_digest(STATEMENT)
    assert {item.path for item in client.list_artifacts(made["run_id"], "checkpoint")} == {
        "checkpoint/model.json",
        "checkpoint/statement.json",
    }


@pytest.mark.usefixtures("verifies")
def test_a_tracked_run_keeps_its_mlflow_run(folder: Path, store: Path) -> None:
    first = MlflowTracker(f"sqlite:///{store}", "digits")
    run_id = first.start("r", {}, {}, "")
    assert first.finish("finished")
    write_json(folder / "result.json", {"run_id": "r", "mlflow_run_id": run_id, "tracking_uri": first.uri})
    made = register_model(folder, "scorer")
    again = register_model(folder, "scorer")
    assert made["run_id"] == again["run_id"] == run_id
    assert (made["version"], again["version"]) == ("1", "2")


@pytest.mark.usefixtures("is_refused")
def test_without_a_verified_statement_nothing_is_made(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ClaimRejected, match="signature"):
        register_model(folder, "scorer", f"sqlite:///{tmp_path}/fresh.db")
    assert not (tmp_path / "fresh.db").exists()


@pytest.mark.usefixtures("is_refused")
def test_the_command_says_so_in_one_line_and_exits_with_4(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["register", f"path={folder}", "name=scorer"]) == 4
    error = capsys.readouterr().err
    assert "signature does not hold" in error and error.count("\n") == 1
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.usefixtures("verifies")
def test_a_server_that_only_the_folder_names_is_not_spoken_to(
    folder: Path, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the store fixture lies here as mlflow.db
    assert store == tmp_path / "mlflow.db"
    write_json(folder / "result.json", {"mlflow_run_id": "x", "tracking_uri": "http://127.0.0.1:9"})
    made = register_model(folder, "scorer")
    assert made["uri"] == f"sqlite:///{store}" and made["version"] == "1"


@pytest.mark.usefixtures("verifies")
@pytest.mark.parametrize(
    ("part", "name", "said"),
    [("nowhere", "m", "no release bundle"), ("..", "m", "no release bundle"), ("", " ", "empty")],
)
def test_what_cannot_be_registered_is_one_line(folder: Path, part: str, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        register_model(folder / part, name)
    assert refused.value.exit_code == 2 and "\n" not in str(refused.value)
