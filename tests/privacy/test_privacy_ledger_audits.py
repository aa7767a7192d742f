"""Audits in the ledger: seen, counted a checkpoint, free, and no way to spend or to give back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dptrain.cli import run
from dptrain.errors import ConfigError
from dptrain.privacy import accounting
from dptrain.privacy.chain import verify_chain
from dptrain.privacy.ledger import Ledger, open_ledger
from dptrain.privacy.ledger_audits import note_audit
from dptrain.privacy.ledger_replay import faults_of_meaning

EVENT = accounting.self_composed(100, accounting.poisson_sampled(0.01, accounting.gaussian(1.2)))
ONE, OTHER = "1a" * 32, "2b" * 32


@pytest.fixture
def ledger() -> Ledger:
    """An account with a run that is open, so that there are totals to move."""
    opened = open_ledger(None)
    opened.create_account("adult", 8, 1e-5)
    held = opened.reserve("adult", event=EVENT, run_id="r1", purpose="final", delta=1e-5, epsilon=1.0)
    opened.commit(held, 40)
    return opened


def noted(ledger: Ledger, bundle: str = ONE) -> int:
    return note_audit(ledger, "adult", run_id="r1", bundle=bundle, attacks=["loss", "rmia"]).look


def test_looks_are_counted_a_checkpoint_and_cost_nothing(ledger: Ledger) -> None:
    account = ledger.account("adult")
    before = (list(account.reserved), list(account.charged), account.value, len(account.entries))
    assert [noted(ledger), noted(ledger), noted(ledger, OTHER), noted(ledger)] == [1, 2, 1, 3]
    account = ledger.account("adult")
    assert (list(account.reserved), list(account.charged), account.value, len(account.entries)) == before
    assert [entry.entry for entry in ledger.state.open_entries("r1")] == [3], "the run that is open stays open"
    first = account.audits[0]
    assert (first.run_id, first.attacks, first.by) == ("r1", ("loss", "rmia"), ledger.log.signer.key_id)
    again = open_ledger(None)
    assert [note.look for note in again.account("adult").audits] == [1, 2, 1, 3]
    assert verify_chain(again).holds


def test_a_frozen_account_still_takes_notes(ledger: Ledger) -> None:
    ledger.freeze("adult", "an incident")
    assert noted(ledger) == 1
    assert verify_chain(ledger).holds


def test_strangers_are_refused(ledger: Ledger) -> None:
    length = len(list(ledger.rows()))
    for wrong in ({"account": "adlut"}, {"bundle": "weights"}, {"attacks": []}):
        given: dict[str, Any] = {"account": "adult", "bundle": ONE, "attacks": ["loss"], "run_id": "r"} | wrong
        with pytest.raises(ConfigError):
            note_audit(ledger, given.pop("account"), **given)
    assert len(list(ledger.rows())) == length


@pytest.mark.parametrize(
    "more", [{"steps": 40}, {"prices": [-5]}, {"event": None}, {"entry": 3, "attempt": 1}, {"account": "b"}]
)
def test_an_audit_that_claims_a_price_or_a_refund_is_a_fault(ledger: Ledger, more: dict[str, Any]) -> None:
    noted(ledger)
    rows = [{key: value for key, value in row.items() if key != "hash"} for row in ledger.rows()]
    assert faults_of_meaning(rows) == ([], [])
    rows[-1] |= more
    problems, _ = faults_of_meaning(rows)
    assert problems and problems[0].startswith(f"row {rows[-1]['sequence']}: ")


def test_show_lists_them(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["budget", "show", "dataset=adult"]) == 0
    assert "audits" not in capsys.readouterr().out
    noted(ledger)
    noted(ledger, OTHER)
    assert run(["budget", "show", "dataset=adult"]) == 0
    text = capsys.readouterr().out
    assert "2 looks at 2 checkpoints" in text and "loss, rmia" in text and "no price" in text
    assert run(["budget", "show", "dataset=adult", "format=json"]) == 0
    shown = json.loads(capsys.readouterr().out)["audits"]
    assert [note["bundle"] for note in shown] == [ONE, OTHER]
    assert shown[0]["purpose"] == "audit" and shown[0]["look"] == 1 and shown[0]["created"]
