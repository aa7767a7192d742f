"""The gate in the flow: after the rows are identified, before the ledger; a refused run has spent and said nothing."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from dptrain.cli import run
from dptrain.privacy.ledger import open_ledger

TABLE = [
    "data=csv",
    "data.path=rows.csv",
    "data.label=ill",
    "data.task=binary",
    'data.classes=["no","yes"]',
    'data.columns={age:{low:0,high:110},sex:{categories:["f","m"]}}',
    "data.public_fraction=0.25",
    "data.public_size=150",
    "model=linear",
    "privacy.epsilon=null",
    "privacy.noise_multiplier=1",
    "privacy.expected_batch_size=16",
    "privacy.epochs=0.2",
    "privacy.delta=1e-4",
    "tracking=none",
    "run.purpose=final",
    "ledger.epsilon_limit=40",
]


def ill(i: int) -> str:
    return "yes" if i % 7 == 0 else "no"


BAD = {
    "nulls": ("gate.max_null_share=0.1", lambda i: f"{'' if i % 3 == 0 else 40},f,{ill(i)}"),
    "ranges": ("gate.max_outside_share=0.1", lambda i: f"{777 if i % 3 == 0 else 40},f,{ill(i)}"),
    "whole_numbers": ("gate.whole_numbers=[age]", lambda i: f"{41.5 if i % 3 == 0 else 40},f,{ill(i)}"),
    "labels": ("gate.label_reference=[0.5,0.5]", lambda i: f"{i % 90},f,{ill(i)}"),
    "duplicates": ("gate.max_duplicate_share=0.5", lambda i: f"{i % 9},f,{ill(i)}"),
}
"""Check -> what is declared, and rows that fail it; about a third of the rows do, which a figure would show."""


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(row: Any) -> None:
    Path("rows.csv").write_text("age,sex,ill\n" + "".join(f"{row(i)}\n" for i in range(200)))


def good(i: int) -> str:
    return f"{i % 100 + i / 1000:.3f},{'fm'[i // 2 % 2]},{ill(i)}"


def entries() -> int:
    return sum(len(account.entries) for account in open_ledger(None).accounts())


def refuse(check: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """A run at a gate that its rows do not pass; returns its outcome."""
    declared, row = BAD[check]
    write(row)
    assert run(["train", *TABLE, "gate=enforce", declared, "run.dir=first"]) == 2
    said = capsys.readouterr()
    assert f"do not pass {check}, and are quarantined" in said.err and said.err.count("\n") == 1 and said.out == ""
    assert not re.search(r"\d\.\d|\d{2,}", said.err.replace(str(Path.cwd()), ""))
    assert entries() == 0 and sorted(p.name for p in Path("first").rglob("*") if p.is_file()) == ["gate.json"]
    return json.loads(Path("first/internal/gate.json").read_text())


@pytest.mark.parametrize("check", BAD)
def test_enforce_refuses_before_anything_is_spent_and_shows_no_figure(
    check: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = refuse(check, capsys)
    assert outcome["failed"] == [check] and len(outcome["digests"]) == 2
    assert stat.S_IMODE(Path("first/internal/gate.json").stat().st_mode) == 0o600


def test_only_a_release_lets_refused_rows_in(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = refuse("labels", capsys)
    for other in (["gate=off"], ["gate=observe"], ["ledger.uri=none", "ledger.epsilon_limit=null"]):
        assert run(["train", *TABLE, *other, "run.dir=again"]) == 2
        assert "data=csv: these rows are quarantined" in capsys.readouterr().err and not Path("again").exists()
    assert entries() == 0
    assert run(["data", "release", f"digest={next(iter(outcome['digests']))}", "reason=meant to be so"]) == 0
    assert run(["train", *TABLE, BAD["labels"][0], "run.dir=again"]) == 0
    assert entries() == 1


def test_observe_leaves_its_outcome_in_the_internal_room_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """Good rows and bad rows leave the same lines and the same public files."""
    seen = {}
    for name, row in {"good": good, "bad": BAD["nulls"][1]}.items():
        write(row)
        declared = ["gate.max_null_share=0.1", "gate.max_duplicate_share=0.1"]
        assert run(["train", *TABLE, *declared, f"run.dir={name}", f"run.id={name}"]) == 0
        said = capsys.readouterr()
        shown = re.sub(r"\d+(\.\d+)?", "#", (said.out + said.err).replace(name, "RUN"))
        files = sorted(str(p.relative_to(name)) for p in Path(name).rglob("*") if p.is_file())
        seen[name] = (shown, files, Path(name, "config.yaml").read_text().replace(name, "RUN"))
        outcome = json.loads(Path(name, "internal", "gate.json").read_text())
        assert outcome["passed"] is (name == "good")
        for file in Path(name).rglob("*"):
            if file.is_file() and "internal" not in file.parts:
                assert b"null_share" not in file.read_bytes().replace(b"max_null_share", b"")
    assert seen["good"] == seen["bad"]


def test_an_account_s_quarantine_stops_its_next_run(capsys: pytest.CaptureFixture[str]) -> None:
    write(good)
    assert run(["train", *TABLE, "run.dir=first"]) == 0
    assert run(["data", "quarantine", "dataset=csv", "reason=complaint"]) == 0
    capsys.readouterr()
    assert run(["train", *TABLE, "run.dir=second"]) == 2
    said = capsys.readouterr().err
    assert "these rows are quarantined" in said and "complaint" not in said and entries() == 1


def test_the_gate_sees_rows_before_any_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"{good(i)},u{i // 8}\n" for i in range(200))
    Path("rows.csv").write_text("age,sex,ill,who\n" + rows)
    user = ["data.unit_column=who", "privacy.unit=user", "privacy.max_rows_per_unit=2", "privacy.adjacency=add_remove"]
    assert run(["train", *TABLE, *user, "gate=enforce", "gate.max_rows_per_unit=5", "run.dir=first"]) == 2
    assert "do not pass unit_rows" in capsys.readouterr().err


def test_declarations_are_refused_before_rows_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    write(lambda i: "no table at all" if i == 7 else good(i))
    assert run(["train", *TABLE, "gate.label_reference=[1.0]", "run.dir=first"]) == 2
    assert "gate.label_reference=[1.0]" in capsys.readouterr().err
