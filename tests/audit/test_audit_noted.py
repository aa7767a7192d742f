"""An audit makes itself known to the account whose rows it reads, and goes on where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dptrain.audit.noted import NO_ACCOUNT, note, noted_line
from dptrain.cli import run
from dptrain.compose import compose
from dptrain.errors import ConfigError
from dptrain.privacy.ledger import open_ledger
from dptrain.privacy.seal import statement_digest
from dptrain.run_folder import read_json
from recipes import audit, train

RUN = ["data=digits", "model=linear", "privacy.epsilon=3", "privacy.expected_batch_size=64", "privacy.epochs=null"]
RUN += ["privacy.steps=3", "tracking=none", "selfcheck.enabled=false", "checkpoint.every=0", "run.dir=r"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_ledger_counts_looks_at_a_counted_run(capsys: pytest.CaptureFixture[str]) -> None:
    train.run(compose("train", [*RUN, "run.purpose=final", "ledger.epsilon_limit=9"]))
    spent = open_ledger(None).totals("digits", pld=False)
    statement = read_json(Path("r/checkpoint/statement.json"))
    assert note(statement, statement["identity"]["run_id"], None, None, ["loss"])["look"] == 1
    audit.run(compose("audit", ["run=r"]))
    kept = read_json(Path("r/internal/audit.json"))["ledger"]
    assert (kept["noted"], kept["account"], kept["look"]) == (True, "digits", 2)
    assert "look 2 at this checkpoint; the stated level holds for each look by itself" in capsys.readouterr().out
    ledger = open_ledger(None)
    assert ledger.totals("digits", pld=False) == spent, "looking costs nothing"
    (first, second) = ledger.account("digits").audits
    assert first.bundle == second.bundle == statement_digest(statement)
    assert second.attacks == ("loss", "logit_difference", "calibrated")
    assert first.run_id == second.run_id == statement["identity"]["run_id"]
    assert run(["budget", "verify"]) == 0
    # Another ledger is not written to, whoever names it.
    own, other = note(statement, "r", None, None, ["loss"]), "sqlite:///other.db"
    assert own["look"] == 3
    open_ledger(other)
    with pytest.raises(ConfigError, match="the run was counted in"):
        note(statement, "r", other, None, ["loss"])
    found = note(statement, "r", None, other, ["loss"])
    assert not found["noted"] and "give ledger_uri" in noted_line(found)
    assert len(list(open_ledger(other).rows())) == 1


def test_a_run_without_an_account_is_not_noted() -> None:
    """That it is audited all the same, test_audit_references.py shows."""
    assert note({"composition": None}, "r", None, None, ["loss"]) == {"noted": False, "why": NO_ACCOUNT}


@pytest.mark.parametrize("of_run", ["postgresql+psycopg://people@server/ledger", "sqlite:///gone.db", None])
def test_a_ledger_out_of_reach_does_not_stop_an_audit(of_run: str | None) -> None:
    """A server that only a run folder names is not even spoken to."""
    statement: dict[str, Any] = {"composition": {"account": "a", "ledger_id": "0" * 32}}
    found = note(statement, "r", None, of_run, ["loss"])
    assert not found["noted"] and "give ledger_uri" in found["why"]
    assert not Path("gone.db").exists()


def test_a_ledger_that_was_named_must_be_there() -> None:
    statement = {"composition": {"account": "a", "ledger_id": "0" * 32}}
    with pytest.raises(ConfigError):
        note(statement, "r", "sqlite:///gone.db", None, ["loss"])
