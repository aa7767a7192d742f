"""What the two ends of a run hand on: tags of ledger and statement, the account on the last lines, orderly refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from people import register_people

from dptrain.cli import run
from dptrain.errors import ClaimRejected
from dptrain.privacy.ledger import open_ledger
from dptrain.run_folder import read_json
from dptrain.tracking.budget import statement_digest
from dptrain.tracking.tracker import NullTracker
from dptrain.training import stages
from dptrain.training.recorder import Recorder

register_people("wired_people", 80, 40)


RUN = [
    "train",
    "data=own",
    "data.name=wired_people",
    "model=linear",
    "privacy.epsilon=null",
    "privacy.noise_multiplier=3",
    "privacy.epochs=null",
    "privacy.steps=6",
    "privacy.expected_batch_size=20",
    "evaluation.every=1",
    "run.purpose=final",
    "run.dir=r",
    "ledger.epsilon_limit=20",
    "ledger.lease_steps=1",
]


class Tracked(NullTracker):
    """Notes what it is told, in order."""

    def __init__(self, rejects: bool = False) -> None:
        self.said: list[tuple[str, Any]] = []
        self.rejects = rejects

    def start(self, run_name: str, params: dict[str, str], tags: dict[str, str], note: str) -> str | None:
        self.said.append(("start", tags))
        return None

    def tag(self, tags: dict[str, str]) -> None:
        self.said.append(("tag", tags))

    def register(self, name: str, bundle: Path) -> None:
        self.said.append(("register", Path("r", "result.json").is_file()))
        if self.rejects:
            raise ClaimRejected("checkpoint", bundle, "its signature does not hold", "do not register it")

    def finish(self, status: str) -> bool:
        self.said.append(("finish", status))
        return True


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tracked(monkeypatch: pytest.MonkeyPatch, rejects: bool = False) -> Tracked:
    tracker = Tracked(rejects)
    monkeypatch.setattr(stages, "make_tracker", lambda settings, earlier=None: tracker)
    return tracker


def test_the_tracker_is_told_of_ledger_and_statement_and_the_last_lines_of_the_account(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = tracked(monkeypatch)
    assert run(RUN) == 0
    statement, ledger = read_json(Path("r", "statement.json")), open_ledger(None)
    begun, ended = dict(tracker.said)["start"], dict(tracker.said)["tag"]
    rows = {row["sequence"]: row["hash"] for row in ledger.rows()}
    for tags in (begun, ended):
        head = json.loads(tags["dp.ledger_head"])
        assert rows[head["sequence"]] == head["hash"]
        assert (tags["dp.account"], tags["dp.ledger"]) == ("people", ledger.id)
        assert int(tags["dp.ledger_entry"]) == statement["composition"]["entry"]
    assert json.loads(ended["dp.ledger_head"]) == statement["composition"]["head"]
    assert ended["dp.statement_digest"] == statement_digest(statement)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["run", "public", "privacy", "checkpoint", "next", "watch"]
    total = statement["composition"]["total"]
    assert f"account people: {total:.3f} of 20 spent, {20 - total:.3f} left" in lines[2]
    ledger.close()


def test_what_was_counted_on_private_rows_is_not_said_to_be_of_the_public_split(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run([*RUN, "tracking=none", "evaluation.metrics=dp", "evaluation.every=3"]) == 0
    public, private = capsys.readouterr().out.splitlines()[1].split("; from private rows: ")
    assert "test_accuracy" in public and private.startswith("private_accuracy ")


def test_a_rejected_claim_is_registered_nowhere_and_loses_no_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = tracked(monkeypatch, rejects=True)
    assert run([*RUN, "tracking.register_as=model"]) == 4
    assert tracker.said[-2:] == [("register", True), ("finish", "finished")]
    assert read_json(Path("r", "result.json"))["status"] == "finished"
    assert capsys.readouterr().err.splitlines()[-1].startswith("dptrain: error: checkpoint=")
    ledger = open_ledger(None)
    assert [entry.status for entry in ledger.state.entries.values()] == ["settled"]
    ledger.close()


def test_a_model_without_a_promise_is_not_registered_even_before_it_is_trained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run([*RUN, "privacy=off", "ledger.uri=none", "tracking.register_as=model"]) == 2
    assert "tracking.register_as=model: takes models whose statement verifies" in capsys.readouterr().err
    assert not Path("r").exists()


def test_a_freeze_stops_a_running_run_at_its_next_commit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = Recorder.on_step

    def freezes(self: Recorder, done: int, *rest: Any) -> None:
        honest(self, done, *rest)
        if done == 2:
            other = open_ledger(None)
            other.freeze("people", "a complaint")
            other.close()

    monkeypatch.setattr(Recorder, "on_step", freezes)
    assert run([*RUN, "tracking=none"]) == 3
    assert "people: is frozen: a complaint" in capsys.readouterr().err.splitlines()[-1]
    assert not Path("r", "checkpoint").exists()
    ledger = open_ledger(None)
    (entry,) = ledger.state.entries.values()
    assert (entry.status, entry.steps_done) == ("settled", 2)
    ledger.close()


def test_a_reader_that_has_had_enough_is_no_error_of_ours() -> None:
    """``dptrain report ... | head``: no traceback, and no line about a disk."""
    program = (
        "from dptrain import cli\n"
        "cli.recipe('report').run = lambda config: print('x' * 10**6) or {}\n"
        "cli.main(['report', 'run=r'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
