"""``dptrain data``: what it prints, what it refuses."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from dptrain.cli import run
from dptrain.config_gate import QuarantineConfig
from dptrain.data.quarantine_file import place
from dptrain.privacy.ledger import open_ledger

FIRST, SECOND, THIRD = "ab" * 32, "cd" * 32, "ef" * 32


def told(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert run(["data", *words]) == 0
    return json.loads(capsys.readouterr().out)


def digests(data: dict[str, Any]) -> list[str]:
    return [entry["digest"] for entry in data["quarantined"]]


@pytest.fixture
def adult(capsys: pytest.CaptureFixture[str]) -> str:
    """An account with two data sets; returns how its digests are keyed."""
    ledger = open_ledger(None)
    ledger.create_account("adult", 8, 1e-5, digest=FIRST)
    ledger.link(SECOND, "adult", "version")
    return f"ledger:{ledger.id}"


def test_show_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    data = told(capsys, "show")
    assert data["quarantined"] == [] and data["history"] == [] and data["head"] is None
    assert not place().exists()


def test_a_digest_goes_in_and_out(capsys: pytest.CaptureFixture[str]) -> None:
    data = told(capsys, "quarantine", f"digest={THIRD}", "reason=scanner was broken")
    (entry,) = data["quarantined"]
    assert (entry["digest"], entry["key"], entry["reason"]) == (THIRD, "given", "scanner was broken")
    assert data["head"]["sequence"] == 2 and data == told(capsys, "show")
    data = told(capsys, "release", f"digest={THIRD}", "reason=scanned again")
    assert data["quarantined"] == []
    assert [row.get("reason") for row in data["history"]] == [None, "scanner was broken", "scanned again"]


def test_an_account_s_data_sets_go_in_together_and_out_one_by_one(
    adult: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = told(capsys, "quarantine", "dataset=adult", "reason=complaint")
    assert digests(data) == [FIRST, SECOND]
    assert {(entry["key"], entry["dataset"]) for entry in data["quarantined"]} == {(adult, "adult")}
    assert digests(told(capsys, "release", f"digest={FIRST}", "reason=settled")) == [SECOND]
    assert digests(told(capsys, "release", "dataset=adult", "reason=settled")) == []


@pytest.mark.usefixtures("adult")
def test_a_digest_the_ledger_knows_is_keyed_by_it(adult: str, capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "quarantine", f"digest={FIRST}", "reason=complaint")
    data = told(capsys, "quarantine", f"digest={THIRD}", "reason=complaint")
    assert [(entry["digest"], entry["key"]) for entry in data["quarantined"]] == [(FIRST, adult), (THIRD, "given")]
    assert digests(told(capsys, "release", "dataset=adult", "reason=settled")) == [THIRD]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shwo"], "did you mean 'show'"),
        (["quarantine", "reason=why"], "dataset=None: is needed"),
        (["release", "reason=why"], "dataset=None: is needed"),
        (["quarantine", f"digest={THIRD}"], "reason="),
        (["quarantine", "digest=abc", "reason=why"], "digest=abc: is not a digest"),
        (["quarantine", f"digest={THIRD.upper()}", "reason=why"], "is not a digest"),
        (["quarantine", f"digest={THIRD}", "dataset=a", "reason=why"], "dataset is set too"),
        (["quarantine", "dataset=adult", "reason=why"], "holds no ledger yet"),
        (["release", "dataset=adult", "reason=why"], "release=adult: is not quarantined"),
        (["release", f"digest={THIRD}", "reason=why"], "is not quarantined"),
        (["quarantine", "datset=a"], "did you mean 'dataset'"),
        (["show", "dataset=adult"], "makes no difference to 'show'"),
        (["show", "uri=postgresql://me:secret@host/db"], "holds a password"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_refusals_are_one_line_and_write_nothing(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["data", *words]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert not place().exists()


@pytest.mark.usefixtures("adult")
def test_an_account_that_is_not_there_is_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "quarantine", "dataset=adlut", "reason=why"]) == 2
    assert "did you mean 'adult'" in capsys.readouterr().err


def test_a_broken_file_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "quarantine", f"digest={THIRD}", "reason=why")
    place().write_bytes(place().read_bytes().replace(b"why", b"who"))
    assert run(["data", "show"]) == 2
    printed = capsys.readouterr()
    assert "row 2" in printed.err and printed.err.count("\n") == 1 and printed.out == ""


def test_help_names_every_key_and_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {item.name}:" in text for item in dataclasses.fields(QuarantineConfig))
    assert "verbs: show, quarantine, release" in text
