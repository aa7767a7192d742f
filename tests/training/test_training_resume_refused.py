"""What a run that goes on refuses before anything is spent: drift, edits, folders without a state, other processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from resumed_run import COUNTED, FREE, SHIFT, entries, go, killed, last_error, room, witness

from dptrain.checkpoint import resume_state
from dptrain.training import drift, resume


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room(tmp_path, monkeypatch)


# --- refusals, each before anything is spent


CHANGES: dict[str, Callable[[pytest.MonkeyPatch], list[str]]] = {
    "privacy.noise_multiplier=9": lambda patch: ["privacy.noise_multiplier=9"],
    "optimizer.lr": lambda patch: ["optimizer.lr=77"],
    "execution.dtype": lambda patch: ["execution.dtype=float64"],
    "code.sources": lambda patch: patch.setattr(drift, "_sources", lambda: "other") or [],
    "data": lambda patch: patch.setitem(SHIFT, "by", 1) or [],
    "ledger": lambda patch: patch.setenv("DPTRAIN_HOME", str(_other_home())) or [],
}


def _other_home() -> Path:
    """Another user's room, with the same keys and another ledger."""
    import shutil

    home = Path(os.environ["DPTRAIN_HOME"])
    other = home.with_name(home.name + "-other")
    other.mkdir()
    for name in ("signing.key", "sealing.key"):
        shutil.copy(home / name, other / name)
    return other


def test_drift_is_refused_with_both_values(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    killed(monkeypatch, COUNTED, 4)
    before, seen = (entries()[0].attempt, entries()[0].committed_steps), witness(monkeypatch)
    for what, change in CHANGES.items():
        with monkeypatch.context() as patch:
            extra = change(patch)
            assert go(["train", "resume=r", *extra]) in (2, 3), what
        said = last_error(capsys)
        assert said.startswith(f"dptrain: error: {what}") and " was " in said
        assert seen == [] and (entries()[0].attempt, entries()[0].committed_steps) == before, what
    assert go(["train", "resume=r"]) == 0


def test_an_edited_config_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    killed(monkeypatch, COUNTED, 4)
    text = Path("r", "config.yaml").read_text()
    Path("r", "config.yaml").write_text(text.replace("clipping_norm: 1.0", "clipping_norm: 2.0"))
    assert go(["train", "resume=r"]) == 2
    assert "privacy.clipping_norm=2.0: was 1.0" in last_error(capsys)
    for broken in ("[1, 2", "- a\n- b\n", "\x00", "privacy: 3\n"):
        Path("r", "config.yaml").write_text(broken)
        assert go(["train", "resume=r"]) == 2
        assert last_error(capsys).startswith("dptrain: error: ")
    Path("r", "config.yaml").unlink()
    assert go(["train", "resume=r"]) == 0


REFUSED = {
    "--multirun": "does not go with resume",
    "seed": "does not go with resume",
    "checkpoint.every=0": "uncounted",
    "checkpoint.key=env:NOT_SET_ANYWHERE": "is not set",
    "execution.device=tpu": "is not one of",
    "a=[1": "command line",
    "data=adult": "data=adult: was ",
    "run.purpose=trial": "run.purpose=trial: was final",
}


def test_what_does_not_go_with_resume(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    killed(monkeypatch, COUNTED, 4)
    for extra, said in REFUSED.items():
        assert go(["train", "resume=r", extra]) == 2
        assert said in last_error(capsys)


def test_folders_that_hold_nothing_to_resume(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(["train", "resume=nowhere"]) == 2
    assert "no such folder" in last_error(capsys)
    killed(monkeypatch, [*COUNTED, "checkpoint.every=0"], 4)
    assert go(["train", "resume=r"]) == 2
    assert "keeps no resume state" in last_error(capsys)


def test_a_count_behind_the_weights_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed(monkeypatch, FREE, 6)
    Path("r", "resume", "journal").write_text("steps 2\n")
    assert go(["train", "resume=r"]) == 2
    assert "steps=2: is what ledger or journal count" in last_error(capsys)
    Path("r", "resume", "journal").unlink()
    assert go(["train", "resume=r"]) == 2
    assert "step journal" in last_error(capsys)


def test_a_run_that_is_running_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed(monkeypatch, COUNTED, 4)
    begun = resume.begin("r")
    assert go(["train", "resume=r"]) == 2
    assert f"is run by another process (pid {os.getpid()} " in last_error(capsys)
    begun.lock.release()
    assert go(["train", "resume=r"]) == 0


def test_a_full_disk_costs_no_state_and_no_count(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """States cannot be written: told once, and the run goes on. The journal cannot: no noise leaves."""
    honest = resume_state.write_sealed

    def full(path: Path, *rest: Any) -> None:
        if list(path.parent.parent.glob("0*")):
            raise OSError(28, "No space left on device")
        honest(path, *rest)

    monkeypatch.setattr(resume_state, "write_sealed", full)
    seen = witness(monkeypatch)

    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    honest_append = resume.StepJournal._append
    monkeypatch.setattr(
        resume.StepJournal,
        "_append",
        lambda self, line: no_room() if line == "steps 5\n" or line == "steps 6\n" else honest_append(self, line),
    )
    assert go(FREE) == 2
    err = capsys.readouterr().err
    assert err.count("no resume state could be written (No space left on device)") == 1
    assert "No space left" in err.splitlines()[-1]
    assert [number for _, number in seen] == [0, 1, 2, 3]


def test_runs_with_private_looks_keep_no_state(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed(monkeypatch, [*COUNTED, "evaluation.metrics=dp"], 4)
    assert not Path("r", "resume").exists()
    assert go(["train", "resume=r"]) == 2
    assert "evaluation.metrics=dp" in last_error(capsys)
