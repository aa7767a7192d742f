"""Resume states: whole or not there, the newest that opens, nothing of another state; and the journal of steps."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dptrain.checkpoint import resume_state
from dptrain.checkpoint.resume_state import (
    FACTS,
    TENSORS,
    ResumeState,
    StateWriter,
    clear_leftovers,
    decoded,
    encoded,
    read_newest,
    write_state,
)
from dptrain.checkpoint.sealing_key import master_key
from dptrain.checkpoint.step_journal import StepJournal
from dptrain.errors import ConfigError

KEY = master_key(bytes(range(32)))
RING = {KEY.id: KEY}


def state(steps: int) -> ResumeState:
    return ResumeState({"steps": steps}, {"model.w": torch.full((3, 2), float(steps))})


def test_the_newest_state_comes_back_and_old_ones_go(tmp_path: Path) -> None:
    for steps in range(5):
        write_state(tmp_path, state(steps), KEY, keep=2)
    found, troubles = read_newest(tmp_path, RING)
    assert found.facts["steps"] == 4 and torch.equal(found.tensors["model.w"], torch.full((3, 2), 4.0))
    assert troubles == [] and len(list(tmp_path.iterdir())) == 2
    for folder in tmp_path.iterdir():
        assert folder.stat().st_mode & 0o777 == 0o700
        assert all(file.stat().st_mode & 0o777 == 0o600 for file in folder.iterdir())


@pytest.mark.parametrize("what", [FACTS, TENSORS])
def test_a_state_that_does_not_open_is_named_and_the_one_before_is_taken(what: str, tmp_path: Path) -> None:
    write_state(tmp_path, state(1), KEY, keep=2)
    newest = write_state(tmp_path, state(2), KEY, keep=2)
    content = bytearray((newest / what).read_bytes())
    content[-1] ^= 1
    (newest / what).write_bytes(content)
    found, troubles = read_newest(tmp_path, RING)
    assert found.facts["steps"] == 1 and len(troubles) == 1 and what in troubles[0]


def test_halves_of_two_states_and_old_states_under_new_names_do_not_open(tmp_path: Path) -> None:
    one, two = (write_state(tmp_path, state(n), KEY, keep=3) for n in (1, 2))
    shutil.copy(one / TENSORS, two / TENSORS)
    assert read_newest(tmp_path, RING)[0].facts["steps"] == 1
    shutil.rmtree(two)
    os.rename(one, one.with_name("000009-" + one.name.partition("-")[2]))
    with pytest.raises(ConfigError, match="something else"):
        read_newest(tmp_path, RING)


class Killed(BaseException):
    """The process dies here."""


@pytest.mark.parametrize("place", ["before facts", "after facts", "after tensors", "before rename", "after rename"])
def test_a_writer_killed_anywhere_leaves_a_state_that_opens(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_state(tmp_path, state(1), KEY, keep=1)
    write, rename = resume_state.write_sealed, os.rename

    def at(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            now = arguments[0].name.removesuffix(".sealed") if name == "file" else name
            if place == f"before {now}":
                raise Killed
            work(*arguments)
            if place == f"after {now}":
                raise Killed

        return run

    monkeypatch.setattr(resume_state, "write_sealed", at("file", write))
    monkeypatch.setattr(resume_state.os, "rename", at("rename", rename))
    monkeypatch.setattr(resume_state.shutil, "rmtree", lambda *_, **__: None)  # a dead process tidies nothing up
    with pytest.raises(Killed):
        write_state(tmp_path, state(2), KEY, keep=1)
    monkeypatch.undo()
    clear_leftovers(tmp_path)
    found, troubles = read_newest(tmp_path, RING)
    assert troubles == [] and found.facts["steps"] == (2 if place == "after rename" else 1)
    write_state(tmp_path, state(3), KEY, keep=1)
    assert read_newest(tmp_path, RING)[0].facts["steps"] == 3
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_costs_the_new_state_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_state(tmp_path, state(1), KEY, keep=1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    writer = StateWriter(tmp_path, KEY, keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(resume_state, "write_sealed", full)
        writer.submit(state(2))
        trouble = writer.wait()
    assert isinstance(trouble, OSError) and trouble.errno == 28
    assert read_newest(tmp_path, RING)[0].facts["steps"] == 1
    assert len(list(tmp_path.iterdir())) == 1
    writer.submit(state(3))
    assert writer.close() is None
    assert read_newest(tmp_path, RING)[0].facts["steps"] == 3


def test_nothing_to_resume_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no resume state"):
        read_newest(tmp_path, RING)
    with pytest.raises(ConfigError, match="holds no resume state"):
        read_newest(tmp_path / "nowhere", RING)


def test_nested_optimizer_state_comes_back_as_it_was() -> None:
    tensors: dict[str, torch.Tensor] = {}
    value = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.rand(2, 3)}}, "groups": [{"betas": (0.9, 0.1)}]}
    value["groups"] += [{"foreach": None, "lr": 1e-3, "nesterov": False, "name": "a", "params": [0, 1]}]
    again = decoded(encoded(value, "optimizer", tensors), tensors)
    assert again["groups"] == value["groups"] and type(again["groups"][0]["betas"]) is tuple
    assert torch.equal(again["state"][0]["exp_avg"], value["state"][0]["exp_avg"])  # type: ignore[index]
    with pytest.raises(ConfigError, match=r"checkpoint\.every=0"):
        encoded({"hook": object()}, "optimizer", {})


# --- the journal


def test_the_journal_counts_what_was_committed(tmp_path: Path) -> None:
    file = tmp_path / "journal"
    journal = StepJournal(file)
    journal.commit(3)
    journal.commit(6)
    journal.release()
    again = StepJournal(file, must_exist=True)
    assert again.executed == 6
    again.close(5)
    again.commit(9)
    again.release()
    assert file.read_text() == "steps 3\nsteps 6\nclosed 5\nsteps 9\n"


def test_a_torn_line_was_never_acknowledged(tmp_path: Path) -> None:
    file = tmp_path / "journal"
    file.write_text("steps 3\nsteps 6")
    journal = StepJournal(file)
    assert journal.executed == 3
    journal.commit(5)
    journal.release()
    assert file.read_text() == "steps 3\nsteps 5\n"


@pytest.mark.parametrize(
    "text", ["steps 6\nsteps 3\n", "step 3\n", "steps -1\n", "steps 3\nclosed 4\n", "\n", "steps ²\n"]
)
def test_a_journal_that_nobody_wrote_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "journal").write_text(text)
    with pytest.raises(ConfigError, match="step journal"):
        StepJournal(tmp_path / "journal")


def test_a_missing_journal_is_not_zero(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is missing"):
        StepJournal(tmp_path / "journal", must_exist=True)


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = StepJournal(tmp_path / "journal")
    journal.commit(3)

    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="No space"):
            journal.commit(6)
    assert journal.executed == 3
    journal.close(2)
    journal.release()
    assert (tmp_path / "journal").read_text() == "steps 3\nclosed 2\n"
