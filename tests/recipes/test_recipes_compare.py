"""compare and report dataset=... from the command line, on real runs and a real ledger."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dptrain.cli import run
from dptrain.compose import compose
from dptrain.config_compare import CompareConfig, RegisterConfig
from dptrain.privacy.ledger import open_ledger
from dptrain.run_folder import read_json

SMALL = ["privacy.epochs=null", "privacy.steps=2", "privacy.expected_batch_size=256"]


def trained(name: str, *more: str) -> None:
    arguments = ["train", "experiment=quickstart", *SMALL, "tracking=none", f"run.dir=runs/{name}", f"run.id={name}"]
    assert run([*arguments, *more]) == 0


@pytest.fixture(scope="module")
def three_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two private runs and a baseline, trained once for this file."""
    place = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("DPTRAIN_HOME", str(place / "home"))
        trained("tight", "privacy.epsilon=null", "privacy.noise_multiplier=4")
        trained("loose", "privacy.epsilon=null", "privacy.noise_multiplier=2")
        trained("plain", "privacy=off")
    return place


def test_real_runs_side_by_side(
    three_runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(three_runs)
    assert run(["compare", "runs=runs", "format=json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [one["run_id"] for one in shown["runs"]] == ["tight", "loose", "plain"]
    for one in shown["runs"]:
        folder = three_runs / "runs" / one["run_id"]
        result, statement = read_json(folder / "result.json"), read_json(folder / "statement.json")
        promised = (statement["guarantee"] or {}).get("epsilon")
        assert one["epsilon"] == promised == result["epsilon"]
        assert one["metric"]["value"] == result["metrics"]["test_accuracy"]
        assert one["cost"]["seconds"] == result["seconds"] and one["cost"]["device"] == "cpu"
    [panel] = shown["panels"]
    assert [p["run_id"] for p in panel["points"]] == ["tight", "loose"]
    assert [b["run_id"] for b in panel["baselines"]] == ["plain"]
    page = (three_runs / "comparison" / "compare.html").read_text(encoding="utf-8")
    assert "<svg" in page and "tight" in page
    assert (three_runs / "comparison" / "pareto.png").is_file()


def test_a_list_a_glob_and_a_single_run_are_understood(
    three_runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(three_runs)
    for wanted, count in (("[runs/tight,runs/plain]", 2), ("runs/*", 3), ("runs/?ight", 1), ("runs/loose", 1)):
        assert run(["compare", f"runs={wanted}", "into=null", "format=json"]) == 0
        assert len(json.loads(capsys.readouterr().out)["runs"]) == count
    assert run(["compare", "runs=runs", "into=null", "tier=public"]) == 0
    text = capsys.readouterr().out
    assert "tight" in text and "Time" not in text and "wrote" not in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runs=nowhere"], "no such folder"),
        (["runs=[runs/tight,runs/tight]"], "named twice"),
        (["runs=runs/none*"], "matches no run"),
        (["runs=[]"], "list of run folders"),
        (["runs={a: 1}"], "list of run folders"),
        (["runs=[1, 2]"], "list of run folders"),
        (["runs=runs/tight,runs/loose"], "[value1,value2]"),
        ([], "is needed"),
        (["runs=runs", "tier=secret"], "internal, public"),
        (["runs=runs", "format=xml"], "text, json"),
        (["runs=runs", "into=runs/tight/result.json"], "cannot be made"),
        (["run=runs"], "did you mean"),
    ],
)
def test_compare_refuses_in_one_line(
    words: list[str],
    said: str,
    three_runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(three_runs)
    assert run(["compare", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_the_page_of_an_account_from_the_command_line(
    three_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ledger = open_ledger("sqlite:///team.db")
    ledger.create_account("digits", 8.0, 1e-5)
    event = read_json(three_runs / "runs" / "tight" / "plan.json")["event"]
    made = ledger.reserve("digits", event=event, run_id="tight", purpose="final", delta=1e-5, epsilon=1.0)
    ledger.commit(made, 2)
    ledger.settle(made, 2)
    more = ["ledger_uri=sqlite:///team.db", f"runs={three_runs / 'runs'}", "into=page.html"]
    assert run(["report", "dataset=digits", *more]) == 0
    said = capsys.readouterr().out
    assert "of 8 is spent" in said and "page.html" in said
    page = Path("page.html").read_text(encoding="utf-8")
    assert "tight" in page and "Training was (" in page and "not audited" in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "run=runs/RUN, or dataset=NAME"),
        (["run=a", "dataset=b"], "one page at a time"),
        (["dataset=b", "tier=public"], "internal"),
        (["dataset=b", "ledger_uri=postgresql://me:secret@host/db"], "password"),
        (["dataset=b"], "holds no ledger yet"),
    ],
)
def test_report_refuses_in_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["report", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and "secret@" not in error
    assert list(tmp_path.iterdir()) == []


def test_yaml_defaults_equal_the_schema_defaults() -> None:
    given = compose("compare", ["runs=a"])
    assert isinstance(given, CompareConfig) and given == CompareConfig(runs="a")
    named = compose("register", ["path=a", "name=b"])
    assert isinstance(named, RegisterConfig) and named == RegisterConfig(path="a", name="b")
