"""The file of the quarantine: one line a row, chained and signed like the ledger, only ever appended to.

A line holds a row's canonical text and the head that was signed for it. Whoever edits, drops, moves or adds a line
breaks the chain; whoever cuts its end, or puts an older copy in its place, contradicts the head that is remembered
beside it (``privacy/witness.py``). A file that does not hold together lets nothing pass. Source: as
``privacy/chain.py``.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dptrain.durable import append, make_folder, sync
from dptrain.errors import ConfigError
from dptrain.privacy import witness
from dptrain.privacy.chain import START, Head, LedgerBroken, read_row, row_hash, row_text, sign_head
from dptrain.signing import Signer, canonical, home, key_id, load_signer, signature_holds, trusted_keys
from dptrain.untrusted_json import NotReadable, parse_untrusted

SCHEMA = "dptrain.quarantine/1"


@dataclass
class Chain:
    """Every row, checked, and the signed head of the last."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    head: Head | None = None


def place() -> Path:
    """``quarantine.jsonl`` in the user's own room, mode 0600."""
    return home() / "quarantine.jsonl"


def read_chain() -> Chain:
    """All rows; none where the file was never made.

    Raises:
        ConfigError: the file is not what was written, names the first row that is wrong.
    """
    file = place()
    with _phrased(file):
        try:
            handle = os.open(file, os.O_RDONLY)
        except FileNotFoundError:
            return _checked(b"", file)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH)
            return _checked(_content(handle), file)
        finally:
            os.close(handle)


def append_row(decide: Callable[[Chain], dict[str, Any] | None]) -> Chain:
    """Appends the row that ``decide`` makes of all rows, while nobody else writes; on disk when it returns.

    Where ``decide`` raises, or returns None, nothing is written.

    Raises:
        ConfigError: the file is not what was written, or cannot be written.
    """
    signer, file = load_signer(), place()
    with _phrased(file):
        make_folder(file.parent)
        decide(read_chain())  # before the file is made: a refusal leaves none
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            content = _content(handle)
            chain = _checked(content, file)
            body = decide(chain)
            if body is None:
                return chain
            bodies = [body]
            if chain.head is None:
                bodies.insert(0, {"kind": "start", "schema": SCHEMA, "id": f"quarantine-{secrets.token_hex(16)}"})
            lines = b"".join(_line(chain, each, signer) for each in bodies)
            append(handle, lines, len(_whole_lines(content)))
            sync(file.parent)  # else a power cut could take the new file's name away
            assert chain.head is not None
            witness.remember(chain.head, str(file))
            return chain
        finally:
            os.close(handle)


def _line(chain: Chain, body: dict[str, Any], signer: Signer) -> bytes:
    """The next line; ``chain`` moves on with it."""
    named = body["id"] if chain.head is None else chain.head.ledger_id
    sequence, previous = (1, START) if chain.head is None else (chain.head.sequence + 1, chain.head.hash)
    # The time is for people: order is the sequence number's business.
    row = {**body, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), "by": signer.key_id}
    text = row_text(sequence, previous, row)
    chain.head = sign_head(signer, named, sequence, row_hash(text))
    chain.rows.append({**row, "sequence": sequence, "previous": previous})
    chain.hashes.append(chain.head.hash)
    return canonical({"row": text, "head": chain.head.to_json()}) + b"\n"


def _checked(content: bytes, file: Path) -> Chain:
    """Every row against its hash, its place and its signature; the last against the keys trusted here, and all against
    the head that is remembered."""
    chain, previous = Chain(), START
    for number, line in enumerate(_whole_lines(content).split(b"\n")[:-1], start=1):
        text, head = _parsed(line, number)
        row = read_row(number, previous, head.sequence, text, head.hash)
        named = row.get("id") if number == 1 else chain.rows[0]["id"]
        if head.ledger_id != named or not _named(head) == head.key_id == row.get("by"):
            raise LedgerBroken(number, "is signed as a row of another file, or by another than it names")
        if not signature_holds(head.public_key, head.signature, head.message):
            raise LedgerBroken(number, "has a signature that does not hold")
        chain.rows.append(row)
        chain.hashes.append(head.hash)
        chain.head, previous = head, head.hash
    _against_memory(chain, file)
    return chain


def _named(head: Head) -> str | None:
    with suppress(ConfigError):
        return key_id(head.public_key)
    return None


def _parsed(line: bytes, number: int) -> tuple[str, Head]:
    try:
        value = parse_untrusted(line)
        text, head = value["row"], Head.from_json(value["head"])
        if not isinstance(text, str) or canonical(value) != line:
            raise ValueError("not as it was written")
    except (NotReadable, ValueError, TypeError, KeyError) as error:
        raise LedgerBroken(number, "is not as it was written") from error
    return text, head


def _against_memory(chain: Chain, file: Path) -> None:
    """Compares the end with the keys trusted here, and with the newest head that was seen of this file."""
    trusted, head = trusted_keys(), chain.head
    if head is not None:
        head.check(trusted)
    known = (None if head is None else witness.recall(head.ledger_id)) or witness.newest_of("quarantine-")
    if known is None:
        if head is None and witness.blank("quarantine-") is not None:
            raise LedgerBroken(1, "is missing: a head was remembered here, though its content is gone")
        return
    known.check(trusted)
    if head is None or known.ledger_id != head.ledger_id:
        raise LedgerBroken(1, f"is missing: {known.sequence} rows were seen here")
    if known.sequence > head.sequence:
        raise LedgerBroken(head.sequence + 1, f"is missing: row {known.sequence} was seen here")
    if chain.hashes[known.sequence - 1] != known.hash:
        raise LedgerBroken(known.sequence, "is not the row that was seen here")


def _whole_lines(content: bytes) -> bytes:
    """Without what follows the last line's end: a row whose writer died, which nobody was told is there."""
    return content[: content.rfind(b"\n") + 1]


def _content(handle: int) -> bytes:
    parts = []
    os.lseek(handle, 0, os.SEEK_SET)
    while part := os.read(handle, 1 << 20):
        parts.append(part)
    return b"".join(parts)


@contextmanager
def _phrased(file: Path) -> Iterator[None]:
    """Errors of the file in the contract's words; exit code 2, since no budget is in question."""
    try:
        yield
    except LedgerBroken as broken:
        where = f"row {broken.row}" if isinstance(broken.row, int) else broken.row
        remedy = "restore the file from a copy that is whole; until then nothing is trained"
        raise ConfigError("quarantine", file, f"{where} {broken.what}", remedy) from broken
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError("quarantine", file, f"cannot be used ({reason})", "mend its folder, or free space") from error
