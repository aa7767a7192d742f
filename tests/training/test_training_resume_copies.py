"""Copies and backups of a run folder, moved states, other people's files in it: no step is released twice."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from resumed_run import COMMON, COUNTED, FREE, STEPS, entries, go, killed, last_error, room, stopped, witness

from dptrain.training import loop
from dptrain.training.loop import Trainer

UNCOUNTED = ["train", *COMMON, "run.purpose=final", "ledger.uri=none"]
"""Private rows that no ledger counts: the journals are all there is."""
BOTH = pytest.mark.parametrize("command", [COUNTED, UNCOUNTED], ids=["ledger", "journal"])


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room(tmp_path, monkeypatch)


@BOTH
def test_a_copy_goes_on_behind_what_the_run_released(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    killed(monkeypatch, command, 4)
    shutil.copytree("r", "copy")
    seen = witness(monkeypatch)
    assert go(["train", "resume=r"]) == 0
    assert len(seen) == STEPS - 4, "a lease of two was committed before step 3"
    assert go(["train", "resume=copy"]) == 0
    assert len(seen) == STEPS - 4, "the copy found every step counted"
    assert json.loads(Path("copy", "result.json").read_text())["steps"] == STEPS


@BOTH
@pytest.mark.parametrize("begin", [2, 4])
def test_a_backup_put_back_remembers_what_came_after_it(
    monkeypatch: pytest.MonkeyPatch, command: list[str], begin: int
) -> None:
    killed(monkeypatch, command, begin)
    shutil.copytree("r", "backup")
    seen = witness(monkeypatch)
    with monkeypatch.context() as patch:
        honest = loop.Trainer._release

        def dies(self: Trainer, number: int, total: Any) -> None:
            honest(self, number, total)
            if number + 1 == 7:
                raise KeyboardInterrupt  # outside of the loop's own stop: as good as a kill

        patch.setattr(loop.Trainer, "_release", dies)
        go(["train", "resume=r"])
    shutil.rmtree("r")
    shutil.copytree("backup", "r")
    assert go(["train", "resume=r"]) == 0
    numbers = [number for _, number in seen]
    assert len(numbers) == len(set(numbers)) and len(numbers) <= STEPS - begin, "no step number was released twice"


@BOTH
@pytest.mark.parametrize("then", ["goes on", "is stopped"])
def test_two_copies_at_once_release_the_plan_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str], then: str
) -> None:
    """While the run is in its fifth step, its copy is taken up: refused, or the run itself is from its next commit."""
    killed(monkeypatch, command, 3)
    shutil.copytree("r", "copy")
    seen, inner = witness(monkeypatch), []
    honest = loop.Trainer._release

    def both(self: Trainer, number: int, total: Any) -> None:
        if number + 1 == 5 and not inner:
            inner.append(None)
            inner[0] = go(["train", "resume=copy"])
            if then == "is stopped":
                os.kill(os.getpid(), 15)
        honest(self, number, total)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_release", both)
        outer = go(["train", "resume=r"])
    assert len(seen) <= STEPS - 2
    if command is UNCOUNTED:
        assert (inner, outer) == ([2], 0) and "as another copy of its folder" in capsys.readouterr().err
    else:
        assert inner == [0] and outer == 3, "the older holder may not commit, nor give anything back"
        assert entries()[0].charged_steps == STEPS and entries()[0].attempt == 3
    assert go(["train", "resume=copy"]) in (0, 2)
    assert len(seen) <= STEPS - 2


def test_a_state_of_another_run_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    killed(monkeypatch, [*UNCOUNTED, "run.id=one"], 4)
    killed(monkeypatch, [*UNCOUNTED, "run.id=two", "run.dir=s"], 8)
    for old in Path("r", "resume").glob("0*"):
        shutil.rmtree(old)
    for state in Path("s", "resume").glob("0*"):
        shutil.copytree(state, Path("r", "resume", state.name))
    seen = witness(monkeypatch)
    assert go(["train", "resume=r"]) == 2
    assert "run.id=one: was two" in last_error(capsys) and seen == []


def test_records_ahead_of_the_count_show_a_ledger_put_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed(monkeypatch, FREE, 6)
    with Path("r", "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "seconds": 1.0}\n{"step": "x"}\n{"step": tr')
    assert go(["train", "resume=r"]) == 2
    assert "steps=6: is what ledger or journal count, and metrics.jsonl has seen 8" in last_error(capsys)


@pytest.mark.parametrize("stated", ['{"sampling": {"steps_done": "/../../out"}}', "[]", "{", '{"sampling": 3}'])
def test_what_stands_in_an_old_statement_moves_nothing_elsewhere(
    monkeypatch: pytest.MonkeyPatch, stated: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(monkeypatch, FREE, 4)
    Path("r", "checkpoint-stopped-").mkdir()
    Path("r", "checkpoint", "statement.json").write_text(stated)
    assert go(["train", "resume=r"]) == 0
    assert Path("r", "checkpoint-stopped-unknown", "model.safetensors").is_file() and not Path("out").exists()


@pytest.mark.parametrize("result", ["[]", "3", "{", '"finished"'])
def test_a_strange_result_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, result: str, capsys: pytest.CaptureFixture[str]
) -> None:
    killed(monkeypatch, FREE, 4)
    Path("r", "result.json").write_text(result)
    assert go(["train", "resume=r"]) == 2
    assert last_error(capsys).startswith("dptrain: error: file=")


def test_the_room_of_a_moved_run_begins_its_own_journal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On another machine the room is another: the folder's own journal counts, and is copied over."""
    killed(monkeypatch, UNCOUNTED, 4)
    shutil.copytree(os.environ["DPTRAIN_HOME"], tmp_path / "other", ignore=shutil.ignore_patterns("journals"))
    monkeypatch.setenv("DPTRAIN_HOME", str(tmp_path / "other"))
    seen = witness(monkeypatch)
    assert go(["train", "resume=r"]) == 0 and len(seen) == STEPS - 4
    (journal,) = (tmp_path / "other" / "journals").iterdir()
    assert journal.read_text().splitlines()[0] == "steps 4" and journal.stat().st_mode & 0o777 == 0o600
