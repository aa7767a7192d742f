"""Keys that are no longer believed: ``revoked.jsonl`` in the user's own room, one signed row a key, never rewritten.

A row names the revoked key, why and when, the row before it by its hash, and is signed by the user's own key. So a row
that is edited, dropped from the middle, moved or forged is noticed, and then nothing is believed at all: verification
refuses until the list is whole again. What is cut from its end cannot be seen in the list itself; therefore the key
file is set aside as well (a colleague's as ``trusted/NAME.pub.revoked``, one's own as ``signing.key.revoked-...``).

A last row without its line end is of a revocation that a power cut or a kill cut off, and was never acknowledged. Where
it is whole it counts. Where it is torn, one line tells so, and the key that it still names, if it does, is refused
until somebody repeats the command; the rows before it stay believed.

A revoked key says nothing of when it was lost: every bundle and statement that it ever signed is refused. Heads of
ledgers are chained and held against copies elsewhere, and stay readable: rows that were spent stay spent.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from dptrain.durable import append, make_folder, sync
from dptrain.errors import ConfigError, one_line
from dptrain.signing import KEY_VARIABLE, Signer, canonical, home, key_id, load_signer, signature_holds, trusted_keys
from dptrain.untrusted_json import NotReadable, parse_untrusted

SCHEMA = "dptrain.revocation/1"
START = "0" * 64
FIELDS = {"schema", "sequence", "previous", "key_id", "reason", "time", "by", "public_key", "signature"}
RESTORE = "restore it from a copy: until then no key is believed"


@dataclass(frozen=True)
class Revocation:
    """One key that is no longer believed."""

    key_id: str
    reason: str
    time: str
    """ISO 8601, of the clock here; for people."""


def list_file() -> Path:
    """Where the list lies."""
    return home() / "revoked.jsonl"


def revoked_keys() -> dict[str, Revocation]:
    """Key id -> revocation, after every row was checked.

    Raises:
        ConfigError: the list was changed, or was signed by a key that is not trusted here.
    """
    return {row["key_id"]: Revocation(row["key_id"], row["reason"], row["time"]) for row in _checked(_content())}


def revoke(key: str, reason: str = "") -> Revocation:
    """Adds a key to the list, for good; on disk when it returns. The same key again changes nothing.

    Where it is the user's own signing key, a new one is made first: the old private key is set aside as
    ``signing.key.revoked-...``, and its public half stays in ``trusted/`` so that the ledgers it signed can be read.

    Args:
        key: a key id (``ed25519:...``), the Base64 text of a public key, a ``.pub`` file, or NAME of
            ``trusted/NAME.pub``.
        reason: why, for people.

    Raises:
        ConfigError: there is no such key, the list was changed, or it cannot be written.
    """
    name = _name_of(key)
    with _alone():
        content = _content()
        rows = _checked(content)
        known = {row["key_id"]: row for row in rows}
        if name not in known:
            signer = load_signer()
            if signer.key_id == name:
                signer = _replace_own(signer)
            _keep_trusted(signer)
            row = _signed(signer, rows, name, one_line(reason)[:300])
            _append(canonical(row) + b"\n", content)
            known[name] = row
        _set_aside(name)
    return Revocation(name, known[name]["reason"], known[name]["time"])


def refusal(name: str) -> str | None:
    """Why a key is not believed, as half a sentence; None where it was not revoked.

    Raises:
        ConfigError: the list of revoked keys was changed.
    """
    content = _content()
    found = next((row for row in _checked(content) if row["key_id"] == name), None)
    if found is not None:
        return f"{name} was revoked here on {found['time'][:10]}" + (f": {found['reason']}" if found["reason"] else "")
    if name == _torn_key(_split(content)[1]):
        return f"{name} was being revoked here when the row was cut off: repeat 'dptrain keys revoke {name}'"
    aside = list(home().glob(f"signing.key.revoked-{name[8:20]}-*"))
    for file in (home() / "trusted").glob("*.pub.revoked"):
        aside += [file] if _id_in(file) == name else []
    return f"{name} was revoked here: {aside[0].name} says so, and {list_file().name} has lost it" if aside else None


def _content() -> bytes:
    """The list as it lies there; empty where there is none."""
    try:
        return list_file().read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise _broken(f"cannot be read ({error.strerror})") from error


def _split(content: bytes) -> tuple[list[bytes], bytes]:
    """(rows that count, what is torn behind them). A last row that is whole and lacks nothing but its end counts."""
    *rows, tail = content.split(b"\n")
    if tail:
        with suppress(ConfigError):
            _row(tail, len(rows) + 1)
            return [*rows, tail], b""
    return rows, tail


def _torn_key(torn: bytes) -> str | None:
    """The key that a torn row was to revoke, where that much of it is there."""
    named = re.search(rb'"key_id":"(ed25519:[0-9a-f]{32})"', torn)
    return None if named is None else named[1].decode()


@cache
def _tell(torn: bytes) -> None:
    """Says once a process that a revocation was cut off."""
    repeat = f"dptrain keys revoke {_torn_key(torn) or 'KEY'}"
    what = f"its last row was cut off while it was written, and revokes nothing: repeat '{repeat}'"
    print(f"dptrain: note: revoked keys={list_file()}: {what}", file=sys.stderr)


def _checked(content: bytes) -> list[dict[str, Any]]:
    """The rows of the list, each checked against its place, its predecessor and its signature."""
    lines, torn = _split(content)
    if torn:
        _tell(torn)
    trusted, previous, rows = trusted_keys(), START, []
    for number, line in enumerate(lines, start=1):
        row = _row(line, number)
        if row["previous"] != previous or row["sequence"] != number:
            raise _broken(f"row {number} does not follow the one before it")
        public = row["public_key"]
        if key_id(public) != row["by"] or not signature_holds(public, row["signature"], _message(row)):
            raise _broken(f"row {number} was changed: its signature does not hold")
        if trusted.get(row["by"]) != public:
            raise _broken(f"row {number} is signed by {row['by']}, which is not trusted here")
        rows.append(row)
        previous = hashlib.sha256(line).hexdigest()
    return rows


def _row(line: bytes, number: int) -> dict[str, Any]:
    try:
        row = parse_untrusted(line)
        if not isinstance(row, dict) or set(row) != FIELDS or row["schema"] != SCHEMA or canonical(row) != line:
            raise NotReadable("is not a row of this list")
        if not all(isinstance(row[name], str) for name in FIELDS - {"sequence"}):
            raise NotReadable("is not a row of this list")
        key_id(row["public_key"])
    except (NotReadable, ConfigError) as error:
        raise _broken(f"row {number} {error.problem if isinstance(error, ConfigError) else error}") from error
    return row


def _signed(signer: Signer, rows: list[dict[str, Any]], name: str, reason: str) -> dict[str, Any]:
    row = {
        "schema": SCHEMA,
        "sequence": len(rows) + 1,
        "previous": hashlib.sha256(canonical(rows[-1])).hexdigest() if rows else START,
        "key_id": name,
        "reason": reason,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "by": signer.key_id,
        "public_key": signer.public_key,
    }
    return row | {"signature": signer.sign(canonical(row))}


def _message(row: dict[str, Any]) -> bytes:
    return canonical({name: value for name, value in row.items() if name != "signature"})


@contextmanager
def _alone() -> Iterator[None]:
    """One revocation at a time, where the system has such locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    try:
        home().mkdir(parents=True, exist_ok=True, mode=0o700)
        opened = (home() / "revoked.lock").open("ab")
    except OSError as error:
        raise ConfigError("revoked keys", home(), f"cannot be written ({error.strerror})", "mend its rights") from error
    with opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def _append(line: bytes, content: bytes) -> None:
    """Adds a row behind those of ``content``, all of them checked; what is torn there goes."""
    file, (rows, torn) = list_file(), _split(content)
    if not torn and rows and not content.endswith(b"\n"):
        line = b"\n" + line
    try:
        make_folder(file.parent)
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            append(handle, line, len(content) - len(torn))
        finally:
            os.close(handle)
        sync(file.parent)
    except OSError as error:
        raise ConfigError("revoked keys", file, f"cannot be written ({error.strerror})", "mend its rights") from error


def _name_of(key: str) -> str:
    """The key id of whatever names a key."""
    text = key.strip()
    if text.startswith("ed25519:"):
        if len(text) == 40 and set(text[8:]) <= set("0123456789abcdef"):
            return text
        raise ConfigError("key", text[:60], "is not a key id", "give the 32 hexadecimal digits that verify prints")
    for file in (Path(text).expanduser(), home() / "trusted" / f"{text}.pub"):
        named = _id_in(file)
        if named is not None:
            return named
    try:
        return key_id(text)
    except ConfigError as error:
        problem = "names no key: neither a key id, nor a public key, nor a .pub file, nor a name in trusted/"
        raise ConfigError("key", text[:60], problem, "give what 'dptrain verify' printed: ed25519:...") from error


def _replace_own(signer: Signer) -> Signer:
    """Sets the user's own key aside and makes another; the public half stays trusted, for the ledgers it signed."""
    if os.environ.get(KEY_VARIABLE):
        raise ConfigError(
            "key", signer.key_id, f"is the key that {KEY_VARIABLE} names, which signs here", "name another file there"
        )
    _keep_trusted(signer)
    aside = home() / f"signing.key.revoked-{signer.key_id[8:20]}-{secrets.token_hex(2)}"
    try:
        os.replace(home() / "signing.key", aside)
    except OSError as error:
        raise ConfigError("signing key", home(), f"cannot be replaced ({error.strerror})", "mend its rights") from error
    return load_signer()


def _keep_trusted(signer: Signer) -> None:
    """The public half of a key of one's own, so that what it signed can be read when another key has taken over."""
    kept = home() / "trusted" / f"own-{signer.key_id[8:20]}.pub"
    try:
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept.write_text(signer.public_key + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError("trusted key", kept, f"cannot be written ({error.strerror})", "mend its rights") from error


def _set_aside(name: str) -> None:
    """Takes a colleague's key out of ``trusted/``; the user's own former keys stay there, for ledgers alone."""
    for file in sorted((home() / "trusted").glob("*.pub")):
        if not file.name.startswith("own-") and _id_in(file) == name:
            with suppress(OSError):  # the list names it already: that is what counts
                file.rename(file.with_name(file.name + ".revoked"))


def _id_in(file: Path) -> str | None:
    """The key id of a public key file; None where it is none."""
    try:
        if not file.is_file():
            return None
        with file.open(encoding="utf-8") as opened:
            return key_id(opened.read(1000).strip())
    except (OSError, ValueError):
        return None


def _broken(problem: str) -> ConfigError:
    return ConfigError("revoked keys", list_file(), problem, RESTORE)
