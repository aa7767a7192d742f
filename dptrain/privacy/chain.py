"""The chain: each row carries the hash of the one before, and the newest is signed.

A row is a JSON object, kept as the canonical text that its SHA-256 is taken of; it names its own sequence number and
the previous row's hash. So a row that is edited, dropped or moved breaks the chain at a place that can be named, and
only whoever holds a trusted key can sign another end. What a chain cannot show by itself is that rows are missing at
its end: for that an outside head is needed (``privacy/witness.py``, statements, MLflow tags).
Source: Haber & Stornetta 1991 (linked time stamps); RFC 8032 (Ed25519).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from dptrain.errors import BudgetRefused, ConfigError, DptrainError
from dptrain.signing import Signer, canonical, signature_holds

if TYPE_CHECKING:
    from dptrain.privacy.ledger import Ledger

HEAD_SCHEMA = "dptrain.ledger.head/1"
START = "0" * 64
"""What the first row names as its predecessor."""


class LedgerBroken(BudgetRefused):
    """A row or the head of the ledger is not what was written; nothing may be spent on it (exit code 3)."""

    def __init__(self, row: int | str, problem: str) -> None:
        self.row = row
        self.what = problem
        remedy = "restore the ledger from a copy that is whole; 'dptrain budget verify' says more"
        super().__init__("ledger", f"row {row}" if isinstance(row, int) else row, problem, remedy)

    def __reduce__(self) -> tuple[Any, ...]:
        """Survives the way back from a worker process."""
        return type(self), (self.row, self.what)


@dataclass(frozen=True)
class Head:
    """The signed end of a ledger. Safe to publish: it names no account and no data."""

    ledger_id: str
    sequence: int
    hash: str
    key_id: str
    signature: str
    public_key: str

    @property
    def message(self) -> bytes:
        """What is signed."""
        named = {"ledger_id": self.ledger_id, "sequence": self.sequence, "hash": self.hash}
        return canonical({"schema": HEAD_SCHEMA, **named})

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @staticmethod
    def from_json(value: Any) -> Head:
        """Reads ``to_json``'s data; ValueError where it is something else."""
        kinds = {"ledger_id": str, "sequence": int, "hash": str, "key_id": str, "signature": str, "public_key": str}
        if not isinstance(value, dict) or any(not isinstance(value.get(name), kind) for name, kind in kinds.items()):
            raise ValueError("not a ledger head")
        return Head(**{name: value[name] for name in kinds})

    def check(self, trusted: dict[str, str]) -> None:
        """Refuses a head that no trusted key has signed."""
        public = trusted.get(self.key_id)
        if public is None:
            raise ConfigError(
                "ledger head",
                self.key_id,
                f"has signed row {self.sequence} and is not a trusted key here",
                f"if you know whose it is, write {self.public_key} to NAME.pub in the folder 'trusted' beside your key",
            )
        if not signature_holds(public, self.signature, self.message):
            raise LedgerBroken("head", f"its signature of row {self.sequence} does not hold")


def sign_head(signer: Signer, ledger_id: str, sequence: int, row_hash: str) -> Head:
    """The head after a row was appended."""
    unsigned = Head(ledger_id, sequence, row_hash, signer.key_id, "", signer.public_key)
    return Head(ledger_id, sequence, row_hash, signer.key_id, signer.sign(unsigned.message), signer.public_key)


def row_text(sequence: int, previous: str, body: dict[str, Any]) -> str:
    """A row's canonical text."""
    return canonical({**body, "sequence": sequence, "previous": previous}).decode()


def row_hash(text: str) -> str:
    """SHA-256 of a row's text, in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def read_row(expected: int, previous: str | None, sequence: int, text: str, written_hash: str) -> dict[str, Any]:
    """One row, checked against its own hash and its place in the chain (``previous`` None: the row before is gone).

    Raises:
        LedgerBroken: naming the row that was edited, is missing, or stands in another's place.
    """
    if sequence != expected:
        raise LedgerBroken(expected, "is missing")
    if not (isinstance(text, str) and isinstance(written_hash, str)):  # SQLite keeps what it is given
        raise LedgerBroken(sequence, "was changed: it holds no text")
    if row_hash(text) != written_hash:
        raise LedgerBroken(sequence, "was changed: its content does not have its hash")
    try:
        body = json.loads(text)
        named, before = body["sequence"], body["previous"]
    except (ValueError, TypeError, KeyError) as error:
        raise LedgerBroken(sequence, "is not a row of this ledger") from error
    if named != sequence:
        raise LedgerBroken(sequence, f"holds the content of row {named}: rows were put in another order")
    if previous is not None and before != previous:
        raise LedgerBroken(max(sequence - 1, 1), f"was replaced: row {sequence} was chained to another")
    return body


def read_rows(
    rows: Iterable[tuple[int, str, str]], after: int = 0, previous: str = START
) -> Iterable[tuple[dict[str, Any], str]]:
    """(content, hash) of rows that follow row ``after`` whose hash is ``previous``, each checked."""
    expected = after + 1
    for sequence, text, written_hash in rows:
        yield read_row(expected, previous, sequence, text, written_hash), written_hash
        expected, previous = expected + 1, written_hash


def check_end(head: Head, last: int, last_hash: str) -> None:
    """Refuses a chain whose last row is not the one the head was signed for."""
    if last < head.sequence:
        raise LedgerBroken(last + 1, f"is missing: the signed head names row {head.sequence}")
    if last > head.sequence:
        raise LedgerBroken(head.sequence + 1, "was added behind the signed head")
    if last_hash != head.hash:
        raise LedgerBroken(last, "was replaced: the signed head names another hash")


@dataclass
class Verdict:
    """What ``verify_chain`` found."""

    ledger_id: str
    rows: int
    head: Head | None
    problems: list[str] = field(default_factory=list)
    """Each names its row."""
    notes: list[str] = field(default_factory=list)
    """Odd, and harmless: a clock set back."""
    rollback: str = "unknown"
    """``unknown`` without an outside head, ``found``, or ``none up to row N``, the newest an outside head names."""

    @property
    def holds(self) -> bool:
        """Whether nothing contradicts the ledger."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"holds": self.holds}


def verify_chain(ledger: Ledger, heads: Iterable[dict[str, Any]] = ()) -> Verdict:
    """Reads the whole ledger and says what contradicts it: hashes, places, signature, prices, limits, outside heads.

    Args:
        ledger: as ``open_ledger(..., check=False)`` gives it.
        heads: heads from elsewhere (statements, MLflow): {"ledger_id", "sequence", "hash"}; the head remembered in the
            user's own room is added.
    """
    from dptrain.privacy.ledger_replay import faults_of_meaning

    store = ledger.store
    hashes: dict[int, str] = {}
    bodies: list[dict[str, Any]] = []
    with store.read() as connection:
        head = store.head(connection)
        verdict = Verdict(head.ledger_id if head else "", 0, head)
        previous: str | None = START
        expected = 1
        for sequence, text, written_hash in store.rows(connection):
            if sequence > expected:
                verdict.problems += [
                    f"row {number}: is missing" for number in range(expected, min(sequence, expected + 9))
                ]
                previous = None
            try:
                bodies.append(read_row(sequence, previous, sequence, text, written_hash))
            except LedgerBroken as broken:
                verdict.problems.append(f"row {broken.row}: {broken.what}")
            hashes[sequence] = previous = written_hash
            expected = sequence + 1
    verdict.rows = len(hashes)
    if head is None:
        verdict.problems.append("head: is missing")
        return verdict
    try:
        head.check(ledger.log.trusted())
        check_end(head, expected - 1, previous or "")
    except LedgerBroken as broken:
        verdict.problems.append(f"{'row ' if isinstance(broken.row, int) else ''}{broken.row}: {broken.what}")
    except DptrainError as error:
        verdict.problems.append(f"head: {error}")
    if not verdict.problems:
        problems, verdict.notes = faults_of_meaning(bodies)
        verdict.problems += problems
    _compare_heads(verdict, hashes, list(heads))
    return verdict


def _compare_heads(verdict: Verdict, hashes: dict[int, str], heads: list[dict[str, Any]]) -> None:
    from dptrain.privacy import witness

    try:
        known = witness.recall(verdict.ledger_id)
    except ConfigError as error:
        verdict.notes.append(str(error))
        known = None
    if known is not None:
        heads = [*heads, known.to_json()]
    elif witness.is_blank(verdict.ledger_id):
        verdict.notes.append("the head remembered here has lost its content (a power cut?): the next row renews it")
    newest = 0
    for outside in heads:
        if outside.get("ledger_id") != verdict.ledger_id:
            verdict.notes.append(f"a head of ledger {outside.get('ledger_id')} says nothing about this one")
            continue
        sequence = int(outside["sequence"])
        if hashes.get(sequence) != outside["hash"]:
            verdict.rollback = "found"
            what = "is missing" if sequence not in hashes else "is another"
            verdict.problems.append(f"row {sequence}: {what}: an outside head names it, so an older copy was restored")
        newest = max(newest, sequence)
    if newest and verdict.rollback != "found":
        verdict.rollback = f"none up to row {newest}"
