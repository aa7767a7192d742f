"""``dptrain budget``: what it prints, what it refuses, in text and in JSON."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from dptrain.cli import run
from dptrain.privacy import accounting
from dptrain.privacy.ledger import open_ledger

EVENT = accounting.self_composed(1000, accounting.poisson_sampled(0.01, accounting.gaussian(1.2)))


@pytest.fixture
def spent(capsys: pytest.CaptureFixture[str]) -> None:
    """An account with one settled run and one that runs."""
    assert run(["budget", "create", "dataset=adult", "epsilon=8", "delta=1e-5", f"digest={'ab' * 32}"]) == 0
    ledger = open_ledger(None)
    for n, label in enumerate(("", "sweep")):
        held = ledger.reserve(
            "adult", event=EVENT, run_id=f"r{n}", purpose="final", delta=1e-5, epsilon=1.3, label=label
        )
        ledger.commit(held, 1000 - n * 980)
        if n == 0:
            ledger.settle(held, 900)
    capsys.readouterr()


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(["budget", *words]) == 0
    return capsys.readouterr().out


def told(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    return json.loads(said(capsys, *words, "format=json"))


@pytest.mark.usefixtures("spent")
def test_show_at_a_glance(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "show", "dataset=adult")
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[:6]] == ["account", "limit", "spent", "remaining", "beside", "entries"]
    assert "2 (2 final); 1 open" in lines[5]
    assert "900 of 1,000" in text and "20 of 1,000" in text and "final (sweep)" in text
    assert "adult" in said(capsys, "show")


@pytest.mark.usefixtures("spent")
def test_show_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    data = told(capsys, "show", "dataset=adult")
    assert data["limit"]["epsilon"] == 8 and data["unit"] == "record" and data["frozen"] is False
    assert data["spent"]["epsilon"] + data["remaining"] == 8
    assert all(data[name]["proves"] for name in ("spent", "settled", "planned_pld", "odometer"))
    assert data["datasets"] == [{"digest": "ab" * 32, "relation": "same"}]
    assert [entry["status"] for entry in data["entries"]] == ["settled", "running"]
    assert data["head"]["sequence"] == 8
    assert told(capsys, "show")["accounts"][0]["entries"] == 2


@pytest.mark.usefixtures("spent")
def test_what_the_forecast_says_fits_does_fit(capsys: pytest.CaptureFixture[str]) -> None:
    data = told(capsys, "forecast", "dataset=adult", "epsilon=2")
    (row,) = data["fits"]
    assert data["shape"] == {"sampling_rate": 0.01, "steps": 1000} and row["runs"] > 2
    ledger = open_ledger(None)
    step = accounting.poisson_sampled(0.01, accounting.gaussian(row["noise_multiplier"]))
    assert accounting.epsilon(accounting.self_composed(1000, step), 1e-5) == pytest.approx(2, rel=0.01)
    assert ledger.admits("adult", accounting.self_composed(1000 * row["runs"], step))
    assert not ledger.admits("adult", accounting.self_composed(1000 * (row["runs"] + 1), step))
    assert f"{row['runs']} more runs at epsilon 2 fit" in said(capsys, "forecast", "dataset=adult", "epsilon=2")


@pytest.mark.usefixtures("spent")
def test_limit_freeze_close_and_link(capsys: pytest.CaptureFixture[str]) -> None:
    data = told(capsys, "limit", "dataset=adult", "epsilon=9", "reason=agreed")
    assert data["limit"]["changes"][0]["reason"] == "agreed"
    assert "8 until " in said(capsys, "show", "dataset=adult")
    assert told(capsys, "freeze", "dataset=adult", "reason=complaint")["frozen_reason"] == "complaint"
    assert told(capsys, "unfreeze", "dataset=adult", "reason=over")["frozen"] is False
    closed = told(capsys, "close", "run=r1", "reason=died")["entries"][1]
    assert (closed["status"], closed["steps_done"], closed["reason"]) == ("abandoned", 20, "died")
    linked = told(capsys, "link", f"digest={'cd' * 32}", "account=adult", "relation=subset")
    assert linked["datasets"][1] == {"digest": "cd" * 32, "relation": "subset"}


@pytest.mark.usefixtures("spent")
def test_export_is_the_chain(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in said(capsys, "export").splitlines()]
    assert [row["sequence"] for row in rows] == list(range(1, 9))
    assert all(later["previous"] == row["hash"] for row, later in itertools.pairwise(rows))


@pytest.mark.usefixtures("spent")
def test_verify_and_a_head_from_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = tmp_path / "head.json"
    head.write_text(said(capsys, "show", "format=json"))
    verdict = told(capsys, "verify", f"heads=[{head}]")
    assert verdict["holds"] and verdict["rollback"] == "none up to row 8" and verdict["rows"] == 8


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["shwo"], 2, "did you mean 'show'"),
        (["show"], 2, "holds no ledger yet"),
        (["create", "dataset=a"], 2, "epsilon=None: is needed"),
        (["create", "dataset=a b", "epsilon=1", "delta=1e-5"], 2, "is not a plain name"),
        (["create", "dataset=a", "epsilon=-1", "delta=1e-5"], 2, "epsilon=-1"),
        (["create", "dataset=a", "epsilon=1", "delta=2"], 2, "delta=2"),
        (["create", "datset=a"], 2, "did you mean 'dataset'"),
        (["show", "uri=postgresql://me:secret@host/db"], 2, "holds a password"),
        (["show", "format=xml"], 2, "is not one of text, json"),
        (["verify", "heads=[nowhere.json]", "uri=sqlite:////nonexistent/x.db"], 2, "holds no ledger yet"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refusals_are_one_line(words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["budget", *words]) == code
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""


def test_help_names_every_key_and_verb(capsys: pytest.CaptureFixture[str]) -> None:
    import dataclasses

    from dptrain.config_budget import BudgetConfig

    text = said(capsys, "--help")
    assert all(f"  {item.name}:" in text for item in dataclasses.fields(BudgetConfig))
    assert "verbs: show, create, limit, freeze, unfreeze, forecast, link, close, export, verify" in text
