"""The log of one ledger: catches up with what others wrote, appends a row, signs, and remembers the head outside."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dptrain.durable import make_folder
from dptrain.errors import ConfigError
from dptrain.privacy import witness
from dptrain.privacy.chain import START, Head, LedgerBroken, check_end, read_rows, row_hash, row_text, sign_head
from dptrain.privacy.ledger_state import State
from dptrain.privacy.ledger_store import LedgerStore
from dptrain.signing import Signer, trusted_keys

if TYPE_CHECKING:
    from sqlalchemy import Connection

SCHEMA = "dptrain.ledger/1"


class LedgerLog:
    """Rows in, state out. Knows the chain and the signatures; what may be written is decided by ``Ledger``."""

    def __init__(self, store: LedgerStore, signer: Signer) -> None:
        self.store = store
        self.signer = signer
        self.state = State()
        self._head: Head | None = None
        self._lock = threading.RLock()

    @property
    def head(self) -> Head:
        """The signed end, as of the last look."""
        assert self._head is not None
        return self._head

    def make(self) -> None:
        """Makes an empty ledger, unless another process was faster. Its file can be read by its owner alone.

        Raises:
            LedgerBroken: a ledger lay at this place before, and is gone.
            ConfigError: that cannot be known, since a remembered head has lost its content.
        """
        gone = witness.lost(self.store.place)
        if gone is not None:
            raise LedgerBroken("head", f"the ledger {gone.ledger_id} of {gone.sequence} rows lay here and is gone")
        blank = witness.blank()
        if blank is not None:
            problem = "has lost its content (a power cut?), and may be of a ledger that lay where none is now"
            raise ConfigError("ledger head", blank, problem, "restore that ledger, or remove this file if it is safe")
        file = self.store.file
        if file is not None:
            try:
                make_folder(file.parent)
                os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
            except OSError as error:
                raise ConfigError(
                    "ledger", file, f"cannot be made ({error.strerror})", "name another place: ledger.uri"
                ) from error
        secret = secrets.token_bytes(32)
        body = {
            "kind": "ledger",
            "schema": SCHEMA,
            "ledger_id": secrets.token_hex(16),
            "secret_sha256": hashlib.sha256(secret).hexdigest(),
            "public_key": self.signer.public_key,
        }
        with self.store.write() as connection:
            if self.store.has_tables(connection):
                return
            self.store.make(connection, secret)
            self._append(connection, body, body["ledger_id"], 0, START)

    def refresh(self) -> None:
        """Takes in what was written since the last look; at first, everything.

        Raises:
            LedgerBroken: see ``read_row``, ``check_end`` and ``_against_witness``.
        """
        with self._lock:
            # The remembered head is read first: one written in between would look like rows that are missing.
            known = witness.recall(self.state.ledger_id) if self.state.ledger_id else None
            with self.store.read() as connection:
                first_look = self.state.sequence == 0
                if first_look:
                    head = self.store.head(connection)
                    known = witness.recall(head.ledger_id) if head else None
            with self.store.read() as connection:
                self._catch_up(connection)
                if known is not None:
                    self._against_witness(connection, known)
            if first_look:
                witness.notice(self.head, self.store.place)

    def write(self, decide: Callable[[State], dict[str, Any] | None]) -> dict[str, Any] | None:
        """Appends the row that ``decide`` makes of the newest state; durable when it returns.

        ``decide`` runs while the ledger is held: nobody else writes between its look and its row. Where it raises,
        or returns None, nothing is written.
        """
        with self._lock:
            with self.store.write() as connection:
                self._catch_up(connection)
                body = decide(self.state)
                if body is None:
                    return None
                state = self.state
                row, head = self._append(connection, body, state.ledger_id, state.sequence, state.hash)
            self._apply(row, head.hash)
            self._head = head
            witness.remember(head, self.store.place)
            return row

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row as plain data, with its hash, as it lies there: nothing is checked."""
        import json

        with self.store.read() as connection:
            for _, text, written_hash in self.store.rows(connection):
                yield {**json.loads(text), "hash": written_hash}

    def trusted(self) -> dict[str, str]:
        """Keys whose heads are believed: this signer's, the user's own, and those in the folder ``trusted``."""
        return trusted_keys() | {self.signer.key_id: self.signer.public_key}

    def _append(
        self, connection: Connection, body: dict[str, Any], ledger_id: str, sequence: int, previous: str
    ) -> tuple[dict[str, Any], Head]:
        # The time is for people: order is the sequence number's business, and a clock that jumps changes nothing.
        row = {**body, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), "by": self.signer.key_id}
        text = row_text(sequence + 1, previous, row)
        head = sign_head(self.signer, ledger_id, sequence + 1, row_hash(text))
        self.store.append(connection, head, text)
        return {**row, "sequence": sequence + 1}, head

    def _catch_up(self, connection: Connection) -> None:
        head = self.store.head(connection)
        if head is None:
            raise LedgerBroken("head", "is missing")
        state = self.state
        if head.sequence < state.sequence:
            raise LedgerBroken(head.sequence + 1, f"is missing: row {state.sequence} had been written already")
        if self._head is not None and (head.sequence, head.hash) == (state.sequence, state.hash):
            return
        head.check(self.trusted())
        last, last_hash = state.sequence, state.hash or START
        for row, found in read_rows(self.store.rows(connection, last), last, last_hash):
            self._apply(row, found)
            last, last_hash = row["sequence"], found
        check_end(head, last, last_hash)
        if head.ledger_id != self.state.ledger_id:
            raise LedgerBroken("head", "belongs to another ledger")
        self._head = head

    def _apply(self, row: dict[str, Any], found: str) -> None:
        try:
            self.state.apply(row, found)
        except BaseException as error:
            self.state, self._head = State(), None  # half a row is no state: the next look starts afresh
            if isinstance(error, (KeyError, TypeError, ValueError)):
                raise LedgerBroken(row["sequence"], f"cannot be read ({error})") from error
            raise

    def _against_witness(self, connection: Connection, known: Head) -> None:
        known.check(self.trusted())
        if self.store.row_hash(connection, known.sequence) == known.hash:
            return
        if known.sequence > self.state.sequence:
            problem = f"is missing: row {known.sequence} was seen here, so an older copy was restored"
            raise LedgerBroken(self.state.sequence + 1, problem)
        raise LedgerBroken(known.sequence, "is not the row that was seen here: an older copy went its own way")
