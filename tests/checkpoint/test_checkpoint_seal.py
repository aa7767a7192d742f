"""Sealed files: what was sealed comes out, anything else does not open; a new key rewrites headers only."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dptrain.checkpoint import seal
from dptrain.checkpoint.seal import START, TAG, SealBroken, read_sealed, rotate, sealed_under, write_sealed
from dptrain.checkpoint.sealing_key import MasterKey, key_ring, load_key, master_key, own_file
from dptrain.config_checkpoint import CheckpointConfig
from dptrain.errors import ConfigError

OLD, NEW, LAST = (master_key(bytes([n]) * 32) for n in (1, 2, 3))
RING = {OLD.id: OLD}
CHUNK = 64


def sealed(folder: Path, data: bytes, key: MasterKey = OLD, context: str = "test", name: str = "x.sealed") -> Path:
    file = folder / name
    file.unlink(missing_ok=True)
    write_sealed(file, [data], key, context, CHUNK)
    return file


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK, 5 * CHUNK + 7])
def test_what_was_sealed_comes_out(size: int, tmp_path: Path) -> None:
    data = os.urandom(size)
    file = sealed(tmp_path, data)
    assert read_sealed(file, RING, "test") == data
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.stat().st_size == START + size + TAG * max(1, -(-size // CHUNK))


@given(st.lists(st.binary(max_size=200), max_size=6))
def test_parts_of_any_size_are_one_file(parts: list[bytes]) -> None:
    pieces = list(seal._pieces(parts, CHUNK))
    assert b"".join(bytes(piece) for piece, _ in pieces) == b"".join(parts)
    assert [last for _, last in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(len(piece) == CHUNK for piece, last in pieces if not last)


def test_no_changed_byte_opens(tmp_path: Path) -> None:
    file = sealed(tmp_path, os.urandom(3 * CHUNK + 5))
    honest = file.read_bytes()
    for place in [*range(0, 2 * seal.BLOCK), *range(START, len(honest))]:
        if seal.BLOCK + len(honest[seal.BLOCK : 2 * seal.BLOCK].rstrip()) <= place < 2 * seal.BLOCK:
            continue  # padding of the envelope's slot
        file.write_bytes(honest[:place] + bytes([honest[place] ^ 1]) + honest[place + 1 :])
        with pytest.raises(SealBroken):
            read_sealed(file, RING, "test")
    file.write_bytes(honest)
    assert len(read_sealed(file, RING, "test")) == 3 * CHUNK + 5


def test_no_cut_swap_or_addition_opens(tmp_path: Path) -> None:
    file = sealed(tmp_path, os.urandom(4 * CHUNK))
    honest, whole = file.read_bytes(), CHUNK + TAG
    head = honest[:START]
    chunks = [honest[START + n * whole : START + (n + 1) * whole] for n in range(4)]
    other = sealed(tmp_path, os.urandom(4 * CHUNK), name="y.sealed").read_bytes()
    cases = {
        "every length": [honest[:size] for size in range(len(honest))],
        "swapped": [head + b"".join(chunks[n] for n in order) for order in ((1, 0, 2, 3), (0, 1, 3, 2), (3, 1, 2, 0))],
        "left out": [head + b"".join(chunks[:n] + chunks[n + 1 :]) for n in range(4)],
        "repeated": [head + b"".join([*chunks, chunks[-1]]), head + b"".join([chunks[0], *chunks])],
        "appended": [honest + b"\0", honest + chunks[0], honest + bytes(whole)],
        "of another file": [head + other[START:], other[:START] + honest[START:]],
        "another's fixed header": [other[: seal.BLOCK] + honest[seal.BLOCK :]],
    }
    for changed in cases.values():
        for content in changed:
            if content == honest:
                continue  # two files of one kind share their fixed header, which holds nothing of the file's own
            file.write_bytes(content)
            with pytest.raises(SealBroken):
                read_sealed(file, RING, "test")


def test_another_key_or_purpose_does_not_open(tmp_path: Path) -> None:
    file = sealed(tmp_path, b"weights")
    with pytest.raises(SealBroken, match=OLD.id):
        read_sealed(file, {NEW.id: NEW}, "test")
    with pytest.raises(SealBroken, match="something else"):
        read_sealed(file, RING, "other")
    with pytest.raises(SealBroken, match="header"):
        read_sealed(file, {OLD.id: MasterKey(OLD.id, NEW._secret)}, "test")


def test_the_same_bytes_never_look_the_same(tmp_path: Path) -> None:
    one, other = (sealed(tmp_path, bytes(5 * CHUNK), name=name).read_bytes() for name in ("x", "y"))
    chunks = {body[START + n * 80 : START + n * 80 + CHUNK] for body in (one, other) for n in range(5)}
    assert len(chunks) == 10


def test_a_new_key_rewrites_the_header_alone(tmp_path: Path) -> None:
    data = os.urandom(1000)
    file = sealed(tmp_path, data)
    before = file.read_bytes()
    assert rotate(file, RING, NEW)
    after = file.read_bytes()
    assert after[START:] == before[START:] and after[: seal.BLOCK] == before[: seal.BLOCK]
    assert sealed_under(file) == [NEW.id] and OLD.id.encode() not in after
    assert read_sealed(file, {NEW.id: NEW}, "test") == data
    with pytest.raises(SealBroken):
        read_sealed(file, RING, "test")
    assert not rotate(file, {NEW.id: NEW}, NEW)


@pytest.mark.parametrize("stop", [0, 1])
def test_a_rotation_that_is_killed_loses_nothing(stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before its first or its second write, and then begun anew to the same or to yet another key."""
    for goal in (NEW, LAST):
        file = sealed(tmp_path, b"weights")
        put, done = seal._put, []

        def killed(*arguments: object, put: object = put, done: list[int] = done) -> None:
            if len(done) == stop:
                raise KeyboardInterrupt
            done.append(1)
            put(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(seal, "_put", killed)
        with pytest.raises(KeyboardInterrupt):
            rotate(file, RING, NEW)
        monkeypatch.setattr(seal, "_put", put)
        assert read_sealed(file, {OLD.id: OLD, NEW.id: NEW}, "test") == b"weights"
        assert rotate(file, {OLD.id: OLD, NEW.id: NEW}, goal)
        assert sealed_under(file) == [goal.id]
        assert read_sealed(file, {goal.id: goal}, "test") == b"weights"


def test_keys_come_from_file_environment_and_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = "ab" * 32
    file = tmp_path / "key"
    file.write_text(digits + "\n")
    file.chmod(0o600)
    monkeypatch.setenv("SEALING", digits)
    ids = {load_key(f"file:{file}").id, load_key("env:SEALING").id, load_key(f"command:cat {file}").id}
    assert ids == {master_key(bytes.fromhex(digits)).id}
    own = load_key(None, create=True)
    assert own.id == load_key(None).id and own_file().stat().st_mode & 0o777 == 0o600
    assert list(key_ring(None)) == [own.id]


def test_keys_are_refused_in_one_line_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "5e" * 32
    loose = tmp_path / "loose"
    loose.write_text(secret)
    loose.chmod(0o644)
    monkeypatch.setenv("SHORT", secret[:-2])
    for source in (f"file:{loose}", "env:SHORT", "env:NOT_THERE", "command:false", "command:not-a-program", None):
        with pytest.raises(ConfigError) as refused:
            load_key(source)
        assert secret[:10] not in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(ConfigError) as refused:
        CheckpointConfig(key=secret)
    assert secret not in str(refused.value)
    key = master_key(bytes.fromhex(secret))
    assert secret not in repr(key)
    with pytest.raises(TypeError):
        pickle.dumps(key)


@given(st.binary(max_size=3000))
def test_noise_instead_of_a_file_is_refused_in_words(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for start in (b"", seal.MAGIC):
            file = Path(folder, "x")
            file.write_bytes(start + content)
            with pytest.raises(SealBroken):
                read_sealed(file, RING, "test")
