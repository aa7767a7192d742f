"""Rows edited, deleted, reordered, added or rolled back: named by ``budget verify``, and nothing is spent on them."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from dptrain import cli
from dptrain.errors import ConfigError
from dptrain.privacy import accounting, witness
from dptrain.privacy.chain import LedgerBroken, row_hash, row_text, sign_head, verify_chain
from dptrain.privacy.ledger import Ledger, open_ledger
from dptrain.signing import load_signer

EVENT = accounting.self_composed(10, accounting.poisson_sampled(0.01, accounting.gaussian(2.0)))


def file_of(ledger: Ledger) -> Path:
    assert ledger.store.file is not None
    return ledger.store.file


@pytest.fixture
def ledger() -> Ledger:
    """Eleven rows: ledger, account, and three runs of three rows each."""
    opened = open_ledger(None)
    opened.create_account("adult", 8, 1e-5)
    for n in range(3):
        held = opened.reserve("adult", event=EVENT, run_id=f"r{n}", purpose="trial", delta=1e-5, epsilon=0.1)
        opened.commit(held, 10)
        opened.settle(held, 10)
    return opened


def tamper(ledger: Ledger, *statements: tuple[str, tuple]) -> None:
    """As someone with the file and a database client would."""
    with closing(sqlite3.connect(file_of(ledger), isolation_level=None)) as connection:
        for name in ("UPDATE", "DELETE"):
            connection.execute(f"DROP TRIGGER IF EXISTS dptrain_ledger_no_{name}")
        for statement, values in statements:
            connection.execute(statement, values)


def text_of(ledger: Ledger, sequence: int) -> str:
    with closing(sqlite3.connect(file_of(ledger))) as connection:
        return connection.execute("SELECT text FROM dptrain_ledger_rows WHERE sequence=?", (sequence,)).fetchone()[0]


def edited(ledger: Ledger, sequence: int = 4) -> None:
    text = text_of(ledger, sequence).replace('"steps":10', '"steps":1')
    tamper(ledger, ("UPDATE dptrain_ledger_rows SET text=? WHERE sequence=?", (text, sequence)))


def edited_with_its_hash(ledger: Ledger, sequence: int = 4) -> None:
    text = text_of(ledger, sequence).replace('"steps":10', '"steps":1')
    change = "UPDATE dptrain_ledger_rows SET text=?, hash=? WHERE sequence=?"
    tamper(ledger, (change, (text, row_hash(text), sequence)))


def edited_at_the_end(ledger: Ledger) -> None:
    edited_with_its_hash(ledger, 11)


def deleted(ledger: Ledger) -> None:
    tamper(ledger, ("DELETE FROM dptrain_ledger_rows WHERE sequence=?", (7,)))


def deleted_at_the_end(ledger: Ledger) -> None:
    tamper(ledger, ("DELETE FROM dptrain_ledger_rows WHERE sequence=?", (11,)))


def deleted_and_renumbered(ledger: Ledger) -> None:
    tamper(
        ledger,
        ("DELETE FROM dptrain_ledger_rows WHERE sequence=?", (7,)),
        ("UPDATE dptrain_ledger_rows SET sequence=-sequence+1 WHERE sequence>?", (7,)),
        ("UPDATE dptrain_ledger_rows SET sequence=-sequence WHERE sequence<?", (0,)),
    )


def reordered(ledger: Ledger) -> None:
    change = "UPDATE dptrain_ledger_rows SET sequence=? WHERE sequence=?"
    tamper(ledger, (change, (-1, 5)), (change, (5, 8)), (change, (8, -1)))


def added_behind_the_head(ledger: Ledger) -> None:
    last = ledger.head()
    text = row_text(12, last.hash, {"kind": "unfreeze", "account": "adult", "reason": "", "time": "", "by": ""})
    tamper(ledger, ("INSERT INTO dptrain_ledger_rows VALUES (?, ?, ?)", (12, text, row_hash(text))))


def head_moved(ledger: Ledger) -> None:
    tamper(ledger, ("UPDATE dptrain_ledger_head SET sequence=?", (10,)))


CASES: list[tuple[Callable[[Ledger], None], str]] = [
    (edited, "row 4: was changed"),
    (edited_with_its_hash, "row 4: was replaced"),
    (edited_at_the_end, "row 11: was replaced"),
    (deleted, "row 7: is missing"),
    (deleted_at_the_end, "row 11: is missing"),
    (deleted_and_renumbered, "row 7: holds the content of row 8"),
    (reordered, "row 5: holds the content of row 8"),
    (added_behind_the_head, "row 12: was added behind the signed head"),
    (head_moved, "its signature of row 10 does not hold"),
]


@pytest.mark.parametrize(("attack", "named"), CASES, ids=[attack.__name__ for attack, _ in CASES])
def test_named_by_verify_and_refused_by_the_next_run(
    attack: Callable[[Ledger], None], named: str, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["budget", "verify"]) == 0
    capsys.readouterr()
    ledger.close()
    attack(ledger)
    assert cli.run(["budget", "verify", "format=json"]) == 4
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert not found["holds"] and any(named in problem for problem in found["problems"]), found["problems"]
    assert printed.err.count("\n") == 1
    with pytest.raises(LedgerBroken) as refused:
        open_ledger(None)
    assert refused.value.exit_code == 3
    assert cli.run(["budget", "show"]) == 3


def test_a_running_process_refuses_what_was_taken_back_under_it(ledger: Ledger) -> None:
    held = ledger.reserve("adult", event=EVENT, run_id="late", purpose="trial", delta=1e-5, epsilon=0.1)
    ledger.commit(held, 1)
    sequence = ledger.head().sequence
    tamper(
        ledger,
        ("DELETE FROM dptrain_ledger_rows WHERE sequence=?", (sequence,)),
        ("UPDATE dptrain_ledger_head SET sequence=?", (sequence - 1,)),
    )
    with pytest.raises(LedgerBroken, match=f"row {sequence}: is missing"):
        ledger.commit(held, 2)


def test_the_database_itself_refuses_a_careless_hand(ledger: Ledger) -> None:
    with closing(sqlite3.connect(file_of(ledger))) as connection:
        for statement in ("DELETE FROM dptrain_ledger_rows", "UPDATE dptrain_ledger_rows SET hash=''"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)


def copy_of(ledger: Ledger, folder: Path) -> list[Path]:
    """The files as a backup takes them, while nothing is open."""
    ledger.close()
    folder.mkdir()
    return [Path(shutil.copy(file, folder)) for file in file_of(ledger).parent.glob("ledger.db*")]


def restore(ledger: Ledger, copies: list[Path]) -> None:
    ledger.close()
    for file in file_of(ledger).parent.glob("ledger.db*"):
        file.unlink()
    for copy in copies:
        shutil.copy(copy, file_of(ledger).parent)


def test_an_old_copy_shows_against_the_head_remembered_here(ledger: Ledger, tmp_path: Path) -> None:
    copies = copy_of(ledger, tmp_path / "backup")
    held = ledger.reserve("adult", event=EVENT, run_id="late", purpose="final", delta=1e-5, epsilon=0.1)
    ledger.commit(held, 10)
    restore(ledger, copies)
    with pytest.raises(LedgerBroken, match=r"row 12: is missing: row 13 was seen here, so an older copy was restored"):
        open_ledger(None)
    verdict = verify_chain(open_ledger(None, check=False))
    assert verdict.rollback == "found"
    assert verdict.problems == ["row 13: is missing: an outside head names it, so an older copy was restored"]


def test_an_old_copy_that_went_on_shows_too(ledger: Ledger, tmp_path: Path) -> None:
    copies = copy_of(ledger, tmp_path / "backup")
    ledger.freeze("adult", "a complaint")
    outside = ledger.head().to_json()
    restore(ledger, copies)
    remembered = witness.folder() / f"{outside['ledger_id']}.json"
    remembered.unlink()  # as on another machine, where nothing is remembered
    again = open_ledger(None)
    again.set_limit("adult", 100, "another history")
    assert verify_chain(again).rollback == "none up to row 12", "its own head is all that is known here"
    verdict = verify_chain(again, [outside])
    assert verdict.rollback == "found" and not verdict.holds
    assert verdict.problems[0].startswith("row 12: is another")


def test_rollback_is_unknown_without_an_outside_head(
    ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = ledger.head().to_json()
    (witness.folder() / f"{head['ledger_id']}.json").unlink()
    assert verify_chain(open_ledger(None, check=False)).rollback == "unknown"
    assert cli.run(["budget", "verify"]) == 0
    assert "rollback  unknown" in capsys.readouterr().out
    statement = tmp_path / "statement.json"
    block = {"ledger_id": head["ledger_id"], "head": {"sequence": head["sequence"], "hash": head["hash"]}}
    statement.write_text(json.dumps({"composition": block}))
    assert cli.run(["budget", "verify", f"heads=[{statement}]"]) == 0
    assert "rollback  none up to row 11" in capsys.readouterr().out
    statement.write_text("{}")
    assert cli.run(["budget", "verify", f"heads=[{statement}]"]) == 2


def test_a_ledger_that_is_gone_is_not_begun_anew(ledger: Ledger) -> None:
    restore(ledger, [])
    with pytest.raises(LedgerBroken, match="of 11 rows lay here and is gone"):
        open_ledger(None)


def test_a_strangers_signature_is_not_believed(ledger: Ledger, tmp_path: Path) -> None:
    stranger = load_signer(tmp_path / "stranger.key")
    head = ledger.head()
    forged = sign_head(stranger, head.ledger_id, head.sequence, head.hash).to_json()
    ledger.close()
    tamper(
        ledger,
        (
            "UPDATE dptrain_ledger_head SET key_id=?, signature=?, public_key=?",
            (forged["key_id"], forged["signature"], forged["public_key"]),
        ),
    )
    with pytest.raises(ConfigError, match="is not a trusted key here"):
        open_ledger(None)
    assert not verify_chain(open_ledger(None, check=False)).holds


def test_rows_that_were_signed_and_never_allowed_are_found(ledger: Ledger) -> None:
    """The holder of the key writes what the rules forbid: the chain holds, the second reading does not."""

    def forged(kind: dict) -> None:
        ledger.log.write(lambda state: kind)

    prices = next(row["prices"] for row in ledger.rows() if row["kind"] == "reserve")
    shared = {"kind": "reserve", "account": "adult", "run_id": "x", "purpose": "final", "label": "", "event": EVENT}
    rest = {"epsilon": 0.1, "delta": 1e-5, "epsilon_account_before": 0.0, "epsilon_account_after": 0.0}
    forged({**shared, **rest, "planned_steps": 10, "prices": [1] * len(prices)})
    forged({"kind": "commit", "entry": 12, "steps": 11, "attempt": 1})
    forged({"kind": "settle", "entry": 3, "steps": 1, "attempt": 1})
    problems = verify_chain(ledger).problems
    assert [problem.split(":")[0] for problem in problems] == ["row 12", "row 13", "row 14"]
    assert "priced below what its event costs" in problems[0]


@pytest.mark.parametrize("content", [b"", b"\0" * 300])
def test_a_remembered_head_without_content_is_unknown_and_a_look_leaves_it(ledger: Ledger, content: bytes) -> None:
    """A power cut left it so. The ledger itself is whole, and counts; only a rollback from before cannot be noticed."""
    remembered = witness.folder() / f"{ledger.head().ledger_id}.json"
    remembered.write_bytes(content)
    again = open_ledger(None)
    assert again.state.accounts["adult"].reserved == ledger.state.accounts["adult"].reserved
    verdict = verify_chain(again)
    assert verdict.holds and verdict.rollback == "unknown" and "lost its content" in verdict.notes[0]
    assert remembered.read_bytes() == content, "a look writes nothing over it"
    again.freeze("adult", "a row")
    assert verify_chain(again).rollback == "none up to row 12", "a row renews it"


def test_a_look_leaves_a_whole_head_as_it_is(ledger: Ledger) -> None:
    remembered = witness.folder() / f"{ledger.head().ledger_id}.json"
    before = remembered.stat()
    open_ledger(None)
    verify_chain(open_ledger(None))
    assert (remembered.stat().st_ino, remembered.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_no_ledger_is_begun_where_a_head_without_content_may_be_of_one_that_is_gone(ledger: Ledger) -> None:
    remembered = witness.folder() / f"{ledger.head().ledger_id}.json"
    remembered.write_bytes(b"")
    restore(ledger, [])
    with pytest.raises(ConfigError, match=r"ledger head=.*lost its content"):
        open_ledger(None)
    assert remembered.read_bytes() == b""
    remembered.unlink()
    assert open_ledger(None).accounts() == []


def test_a_ledger_that_was_lost_with_a_move_of_the_room_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The room lies elsewhere now: its own ledger, gone, is not begun anew with nothing spent."""
    rooms = [tmp_path / name for name in ("room", "moved")]
    monkeypatch.setenv("DPTRAIN_HOME", str(rooms[0]))
    with closing(open_ledger(None)) as ledger:
        ledger.create_account("ward", 3, 1e-5)
    rooms[0].rename(rooms[1])
    monkeypatch.setenv("DPTRAIN_HOME", str(rooms[1]))
    for file in rooms[1].glob("ledger.db*"):
        file.unlink()
    with pytest.raises(LedgerBroken, match="of 2 rows lay here and is gone"):
        open_ledger(None)
    with closing(open_ledger(f"sqlite:///{tmp_path / 'another.db'}")) as another:
        assert not another.accounts(), "a ledger elsewhere is another one"
