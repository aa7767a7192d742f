"""Heads of a ledger that are kept elsewhere: in statements, and in what ``dptrain budget show`` printed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dptrain.errors import ConfigError
from dptrain.untrusted_json import NotReadable, read_untrusted


def read_heads(files: Iterable[str]) -> list[dict[str, Any]]:
    """{"ledger_id", "sequence", "hash"} of each file: a statement (block ``composition``), or JSON with a ``head``.

    Raises:
        ConfigError: a file cannot be read, or names no head.
    """
    return [_read(Path(name).expanduser()) for name in files]


def _read(file: Path) -> dict[str, Any]:
    try:
        found = read_untrusted(file)  # a statement of somebody else's run, as likely as not
    except NotReadable as error:
        raise ConfigError(
            "heads", file, str(error), "name a statement, or what 'budget show format=json' gave"
        ) from error
    block = (
        found.get("composition") if isinstance(found, dict) and isinstance(found.get("composition"), dict) else found
    )
    head = block.get("head", block) if isinstance(block, dict) else None
    if isinstance(block, dict) and isinstance(head, dict):
        ledger, row, digest = head.get("ledger_id", block.get("ledger_id")), head.get("sequence"), head.get("hash")
        if isinstance(ledger, str) and type(row) is int and isinstance(digest, str):
            return {"ledger_id": ledger, "sequence": row, "hash": digest}
    raise ConfigError("heads", file, "names no ledger head", "give a statement of a later run")
