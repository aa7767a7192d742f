"""dptrain keys: which key opens which file, and a new key for all, however often the rotation is killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dptrain.checkpoint import rotation
from dptrain.checkpoint.resume_state import FACTS, TENSORS, ResumeState, read_newest, write_state
from dptrain.checkpoint.seal import SealBroken
from dptrain.checkpoint.sealing_key import key_ring, load_key, own_file
from dptrain.cli import recipe, run


@pytest.fixture
def rooms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three runs with a resume state each."""
    monkeypatch.chdir(tmp_path)
    found = []
    for name in ("a", "b", "c"):
        room = tmp_path / "runs" / name / "resume"
        room.mkdir(parents=True)
        write_state(room, ResumeState({"run": name}, {"w": torch.ones(3)}), load_key(None, create=True), keep=1)
        found.append(room)
    return found


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    return json.loads(capsys.readouterr().out)


def test_show_names_keys_and_files(rooms: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", "show"]) == 0
    found = said(capsys)
    assert found["key"] == load_key(None).id
    assert found["files"] == {
        str(file.relative_to(Path.cwd())): [load_key(None).id]
        for room in rooms
        for file in sorted(next(room.iterdir()).iterdir())
        if file.name in (FACTS, TENSORS)
    }
    assert own_file().read_text().strip() not in json.dumps(found)


def test_rotate_makes_a_new_key_and_keeps_the_old_one_aside(
    rooms: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    old = load_key(None)
    assert run(["keys", "rotate"]) == 0
    found = said(capsys)
    assert found["key"] == load_key(None).id != old.id
    assert len(found["rotated"]) == 6  # type: ignore[arg-type]
    assert Path(str(found["retired"])).stat().st_mode & 0o777 == 0o600
    assert set(key_ring(None)) == {old.id, load_key(None).id}
    new = load_key(None)
    for room in rooms:
        assert read_newest(room, {new.id: new})[0].facts["run"] == room.parent.name
        with pytest.raises(SealBroken):
            read_newest(room, {old.id: old})
    assert run(["keys", "rotate"]) == 0
    assert len(said(capsys)["rotated"]) == 6  # type: ignore[arg-type]


@pytest.mark.parametrize("after", [0, 1, 4, 6])
def test_a_killed_rotation_is_begun_again(
    after: int, rooms: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed after that many files (6: before the key itself): every file opens, and the next rotation ends it."""
    from dptrain.checkpoint import seal

    honest, done = seal.rotate, []

    def killed(*arguments: object) -> bool:
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(1)
        return honest(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(seal, "rotate", killed)
        patch.setattr(rotation, "finish", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(["keys", "rotate"]) == 130
    assert all(read_newest(room, key_ring(None))[0].facts["run"] == room.parent.name for room in rooms)
    capsys.readouterr()
    assert run(["keys", "rotate"]) == 0
    assert len(said(capsys)["rotated"]) == 6 - after  # type: ignore[arg-type]
    new = load_key(None)
    assert all(read_newest(room, {new.id: new})[0].facts["run"] == room.parent.name for room in rooms)


def test_keys_of_the_environment(
    rooms: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OLD", own_file().read_text())
    monkeypatch.setenv("NEW", "7a" * 32)
    assert run(["keys", "rotate", "key=env:OLD"]) == 2
    assert "to=None: is needed" in capsys.readouterr().err
    assert run(["keys", "rotate", "key=env:OLD", "to=env:OLD"]) == 2
    assert run(["keys", "rotate", "key=env:OLD", "to=env:NEW"]) == 0
    new = load_key("env:NEW")
    assert all(read_newest(room, {new.id: new}) for room in rooms)


def test_refusals_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (
        ["rotat"],
        ["rotate"],
        ["show"],
        ["show", "runs=nowhere"],
        ["show", "to=env:X"],
        ["rotate", "to=" + "5e" * 32],
    ):
        assert run(["keys", *words]) == 2
        err = capsys.readouterr().err
        assert err.startswith("dptrain: error: ") and err.count("\n") == 1 and "5e5e" not in err
    assert not own_file().exists()
    assert run(["keys", "--help"]) == 0
    assert set(recipe("keys").VERBS) >= {"show", "rotate"}
