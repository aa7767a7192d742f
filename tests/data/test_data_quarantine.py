"""The quarantine: what is in it stays refused whatever is done to its file, short of releasing it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dptrain.data.manifest import manifest_digest
from dptrain.data.quarantine import quarantine, refuse_quarantined, release, standing
from dptrain.data.quarantine_file import place, read_chain
from dptrain.data.quarantine_names import GIVEN, NamedRows, ledger_key, own_secret
from dptrain.data.source import Rows
from dptrain.errors import ConfigError
from dptrain.privacy.ledger import open_ledger
from dptrain.signing import home

ROWS = Rows(torch.arange(12.0).reshape(6, 2), torch.arange(6) % 2)
OTHERS = Rows(torch.arange(12.0).reshape(6, 2), torch.arange(6) % 3)


def digest(number: int) -> str:
    return f"{number:064x}"


def quarantined() -> list[str]:
    return [entry["digest"] for entry in standing()["quarantined"]]


@pytest.fixture
def filled() -> Path:
    """Five lines: the first, two data sets, one release, one more data set."""
    quarantine([{digest(1): GIVEN}], "first")
    quarantine([{digest(2): GIVEN}], "second", dataset="adult", run="r2")
    release("first", "mended", [digest(1)])
    quarantine([{digest(3): GIVEN, digest(4): GIVEN}, {digest(5): GIVEN}], "third")
    assert quarantined() == [digest(n) for n in (2, 3, 4, 5)]
    return place()


# --- rows in, rows out


def test_rows_are_refused_until_they_are_released() -> None:
    named = NamedRows(ROWS)
    refuse_quarantined(named, "mine")
    quarantine([named.all()], "a complaint")
    with pytest.raises(ConfigError, match=r"^data=mine: these rows are quarantined; .*data show") as refusal:
        refuse_quarantined(named, "mine")
    assert refusal.value.exit_code == 2 and "complaint" not in str(refusal.value)
    refuse_quarantined(NamedRows(OTHERS), "mine")
    release("mine", "withdrawn", named.all())
    refuse_quarantined(named, "mine")
    assert [row["kind"] for row in standing()["history"]] == ["start", "quarantine", "release"]


def test_nothing_quarantined_costs_no_digest_and_makes_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dptrain.data.quarantine_names.manifest_digest", lambda *_: pytest.fail("a pass over the rows"))
    refuse_quarantined(NamedRows(ROWS), "mine")
    assert not home().joinpath("quarantine.jsonl").exists() and standing()["quarantined"] == []


def test_files_are_the_owners_alone(filled: Path) -> None:
    own_secret()
    for file in (filled, home() / "quarantine.secret"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_names_of_one_data_set_are_released_together_and_others_stay(filled: Path) -> None:
    release("x", "mended", [digest(3)])
    assert quarantined() == [digest(2), digest(5)]
    release("adult", "mended", dataset="adult")
    assert quarantined() == [digest(5)]
    with pytest.raises(ConfigError, match="release=adult: is not quarantined"):
        release("adult", "mended", dataset="adult")
    assert len(read_chain().rows) == 7


def test_what_is_quarantined_already_adds_no_row(filled: Path) -> None:
    before = filled.read_bytes()
    quarantine([{digest(4): GIVEN}, {digest(2): GIVEN}], "again")
    assert filled.read_bytes() == before


@pytest.mark.parametrize("reason", ["", "  ", "x" * 501])
def test_a_reason_says_something(reason: str) -> None:
    with pytest.raises(ConfigError, match="reason="):
        quarantine([{digest(1): GIVEN}], reason)
    assert not place().exists()


def test_releasing_what_never_was_leaves_no_file() -> None:
    with pytest.raises(ConfigError, match="is not quarantined"):
        release("mine", "mended", [digest(1)])
    assert not place().exists()


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=12))
@settings(max_examples=20)
def test_it_holds_what_a_set_would_hold(moves: list[tuple[bool, int]]) -> None:
    for file in (place(), *(home() / "heads").glob("*.json")):
        file.unlink(missing_ok=True)
    model: set[str] = set()
    for put, number in moves:
        if put:
            quarantine([{digest(number): GIVEN}], "why")
            model.add(digest(number))
        elif digest(number) in model:
            release("x", "why", [digest(number)])
            model.remove(digest(number))
        else:
            with pytest.raises(ConfigError, match="is not quarantined"):
                release("x", "why", [digest(number)])
    assert sorted(quarantined()) == sorted(model)


# --- whose digest


def test_an_account_s_digest_refuses_runs_of_its_ledger_and_runs_without_one() -> None:
    ledger = open_ledger(None)
    named = manifest_digest(ROWS, ledger.secret)
    quarantine([{named: ledger_key(ledger)}], "complaint", dataset="mine")
    for rows in (NamedRows(ROWS, ledger, named), NamedRows(ROWS, ledger), NamedRows(ROWS)):
        with pytest.raises(ConfigError, match="these rows are quarantined"):
            refuse_quarantined(rows, "mine")
    refuse_quarantined(NamedRows(OTHERS, ledger, manifest_digest(OTHERS, ledger.secret)), "mine")


def test_what_a_gate_refused_is_refused_in_every_ledger(tmp_path: Path) -> None:
    first, second = open_ledger(f"sqlite:///{tmp_path}/a.db"), open_ledger(f"sqlite:///{tmp_path}/b.db")
    names = NamedRows(ROWS, first, manifest_digest(ROWS, first.secret)).all()
    assert sorted(key.split(":")[0] for key in names.values()) == ["home", "ledger"]
    quarantine([names], "gate: labels")
    for ledger in (second, None):
        with pytest.raises(ConfigError, match="these rows are quarantined"):
            refuse_quarantined(NamedRows(ROWS, ledger), "mine")


def test_a_digest_that_somebody_typed_is_tried_under_every_secret_at_hand() -> None:
    ledger = open_ledger(None)
    for typed in (manifest_digest(ROWS, own_secret()), manifest_digest(OTHERS, ledger.secret)):
        quarantine([{typed: GIVEN}], "typed")
    for rows in (ROWS, OTHERS):
        with pytest.raises(ConfigError, match="these rows are quarantined"):
            refuse_quarantined(NamedRows(rows), "mine")


@pytest.mark.parametrize("harm", ["removed", "replaced", "cut", "readable"])
def test_a_secret_that_is_gone_refuses_every_run(harm: str) -> None:
    quarantine([NamedRows(ROWS).all()], "gate: labels")
    secret = home() / "quarantine.secret"
    if harm == "removed":
        secret.unlink()
    if harm == "replaced":
        secret.write_bytes(bytes(32))
    if harm == "cut":
        secret.write_bytes(bytes(31))
    if harm == "readable":
        secret.chmod(0o644)
    with pytest.raises(ConfigError, match=r"quarantine\.secret: "):
        refuse_quarantined(NamedRows(OTHERS), "mine")


# --- the file


def refused() -> str:
    """Every use of the file is refused, in one line of exit code 2; none of them changes a byte of it."""
    before = place().read_bytes() if place().exists() else None
    uses = (
        lambda: refuse_quarantined(NamedRows(ROWS), "mine"),
        lambda: quarantine([{digest(9): GIVEN}], "why"),
        lambda: release("x", "why", [digest(2)]),
        standing,
    )
    said = ""
    for use in uses:
        with pytest.raises(ConfigError) as refusal:
            use()
        said = str(refusal.value)
        assert refusal.value.exit_code == 2 and "\n" not in said
    assert (place().read_bytes() if place().exists() else None) == before
    return said


def test_any_byte_that_is_changed_is_noticed(filled: Path) -> None:
    whole = filled.read_bytes()
    places = {*range(0, len(whole), 61), len(whole) - 1, whole.index(b"\n")}
    for at in sorted(places):
        filled.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ConfigError, match=r"^quarantine="):
            standing()
    filled.write_bytes(whole)
    assert len(quarantined()) == 4


CASES = {
    "the last row dropped": lambda lines: lines[:-1],
    "all but the first dropped": lambda lines: lines[:1],
    "everything dropped": lambda lines: [],
    "a middle row dropped": lambda lines: [*lines[:2], *lines[3:]],
    "the first row dropped": lambda lines: lines[1:],
    "two rows swapped": lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
    "a row twice": lambda lines: [*lines, lines[-1]],
    "the release moved to the end": lambda lines: [*lines[:3], lines[4], lines[3]],
    "the last line's end cut off": lambda lines: [*lines[:-1], lines[-1].rstrip(b"\n")],
    "a line of white space": lambda lines: [*lines, b"  \n"],
    "an unsigned row": lambda lines: [*lines, b'{"head":null,"row":"{}"}\n'],
    "a space more": lambda lines: [*lines[:-1], lines[-1].replace(b":", b": ", 1)],
    "bytes that are no text": lambda lines: [*lines, b"\xff\xfe\n"],
    "brackets without end": lambda lines: [*lines, b"[" * 10_000 + b"\n"],
}


@pytest.mark.parametrize("case", CASES)
def test_tampering_is_caught_and_nothing_is_written_over_it(case: str, filled: Path) -> None:
    filled.write_bytes(b"".join(CASES[case](filled.read_bytes().splitlines(keepends=True))))
    assert str(place()) in refused()


def test_a_file_that_is_gone_is_missed(filled: Path) -> None:
    filled.unlink()
    assert "is missing: 5 rows were seen here" in refused()


def test_a_file_that_is_gone_is_missed_from_a_room_that_was_moved(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The room lies elsewhere now, or is reached by another path: what it held is missed all the same."""
    moved = tmp_path / "moved"
    shutil.copytree(filled.parent, moved)
    monkeypatch.setenv("DPTRAIN_HOME", str(moved))
    assert read_chain().rows
    for content in (None, b"", b"{"):
        (moved / filled.name).unlink(missing_ok=True)
        if content is not None:
            (moved / filled.name).write_bytes(content)
        with pytest.raises(ConfigError, match=r"is missing: [0-9]+ rows were seen here"):
            read_chain()


def test_another_s_quarantine_is_not_taken_for_ours(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = home()
    monkeypatch.setenv("DPTRAIN_HOME", str(tmp_path / "stranger"))
    quarantine([{digest(7): GIVEN}], "theirs")
    theirs = place().read_bytes()
    monkeypatch.setenv("DPTRAIN_HOME", str(own))
    filled.write_bytes(theirs)
    assert "is not a trusted key here" in refused()


def test_a_row_forged_with_another_key_is_refused(filled: Path) -> None:
    """Whoever can write the file, and not sign with a trusted key, cannot release anything."""
    whole, key = filled.read_bytes(), home() / "signing.key"
    kept = key.read_bytes()
    program = (
        "from dptrain.data import quarantine_file as f, quarantine as q\n"
        "from dptrain.signing import trusted_keys\n"
        "f.trusted_keys = lambda: trusted_keys() | OLD\n"
        f"q.release('x', 'forged', ['{digest(2)}'])\n"
    )
    from dptrain.signing import trusted_keys

    old = trusted_keys()
    key.unlink()
    subprocess.run([sys.executable, "-c", f"OLD = {old!r}\n{program}"], check=True, env=os.environ)
    assert len(filled.read_bytes()) > len(whole)
    key.write_bytes(kept)
    for head in (home() / "heads").glob("*.json"):
        head.unlink()
    assert "is not a trusted key here" in refused()


def test_a_writer_that_died_in_a_line_loses_that_line_alone(filled: Path) -> None:
    whole = filled.read_bytes()
    filled.write_bytes(whole + b'{"head":{"hash":"1234')
    assert len(quarantined()) == 4
    quarantine([{digest(8): GIVEN}], "after")
    assert filled.read_bytes().startswith(whole) and quarantined()[-1] == digest(8)


def test_a_full_disk_leaves_what_was_there(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, write = filled.read_bytes(), os.write

    def full(handle: int, data: memoryview) -> int:
        if len(data) > 100:
            return write(handle, data[:100])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("dptrain.data.quarantine_file.os.write", full)
        with pytest.raises(ConfigError, match="No space left"):
            quarantine([{digest(8): GIVEN}], "full")
    assert filled.read_bytes() == whole and len(quarantined()) == 4


WRITER = """
import sys
from dptrain.data.quarantine import quarantine
first = int(sys.argv[1])
for n in range(first, first + 15):
    quarantine([{f"{n:064x}": "given"}], f"row {n}")
"""


def test_two_processes_at_once_lose_no_row() -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(first)], env=os.environ, stderr=subprocess.PIPE)
        for first in (100, 200)
    ]
    for writer in writers:
        _, said = writer.communicate(timeout=60)
        assert writer.returncode == 0, said
    assert sorted(quarantined()) == [digest(n) for n in (*range(100, 115), *range(200, 215))]
    rows = read_chain().rows
    assert [row["sequence"] for row in rows] == list(range(1, 32))
    hashes = [json.loads(line)["head"]["hash"] for line in place().read_text().splitlines()]
    assert all(
        later["previous"] == known for known, later in zip(hashes, itertools.islice(rows, 1, None), strict=False)
    )
