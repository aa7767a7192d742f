"""Files that outlive a power cut: synced in the right order, whole or not at all, never over another's."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from dptrain import durable
from dptrain.errors import ConfigError
from dptrain.run_folder import RunFolder


class Calls:
    """Notes what is synced, by path, and every link."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        fsync, link = os.fsync, os.link

        def noted_sync(handle: int) -> None:
            self.seen.append(f"sync {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
            fsync(handle)

        def noted_link(old: Path, new: Path) -> None:
            self.seen.append(f"link {new.name}")
            link(old, new)

        monkeypatch.setattr(os, "fsync", noted_sync)
        monkeypatch.setattr(os, "link", noted_link)


def test_a_new_file_is_synced_before_its_name_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    assert durable.create_once(tmp_path / "key", b"secret")
    assert [call.split()[0] for call in calls.seen] == ["sync", "link", "sync"]
    assert calls.seen[0].startswith("sync .key.") and calls.seen[2] == f"sync {tmp_path.name}"
    assert (tmp_path / "key").read_bytes() == b"secret"
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["key"]


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"first")
    assert not durable.create_once(tmp_path / "key", b"second")
    assert (tmp_path / "key").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["key"]


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        durable.create_once(tmp_path / "key", b"secret")
    assert os.listdir(tmp_path) == []


def test_every_new_folder_is_named_on_disk_by_the_one_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    durable.make_folder(tmp_path / "a" / "b")
    assert calls.seen == [f"sync {tmp_path.name}", "sync a"]
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    durable.make_folder(tmp_path / "a" / "b")
    assert len(calls.seen) == 2


@pytest.mark.parametrize("bites", [1, 3, 1000])
def test_short_writes_are_carried_on(bites: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, bytes(data[:bites])))
    file = tmp_path / "list"
    file.write_bytes(b"one\ntor")  # its writer died
    handle = os.open(file, os.O_WRONLY | os.O_APPEND)
    durable.append(handle, b"two\n", 4)
    os.close(handle)
    assert file.read_bytes() == b"one\ntwo\n"


def test_a_line_that_does_not_fit_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, left = os.write, [2]

    def filling(handle: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1
        return write(handle, bytes(data[:1]))

    file = tmp_path / "list"
    file.write_bytes(b"one\n")
    handle = os.open(file, os.O_WRONLY | os.O_APPEND)
    monkeypatch.setattr(os, "write", filling)
    with pytest.raises(OSError, match="No space"):
        durable.append(handle, b"two\n", 4)
    os.close(handle)
    assert file.read_bytes() == b"one\n"


def test_a_run_folder_that_a_gate_refused_is_free_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", "run").create()
    (folder.internal / "gate.json").write_text("{}")
    folder.create()
    (folder.path / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match="is not an empty folder"):
        folder.check_free()
