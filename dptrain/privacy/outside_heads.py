"""Heads of a ledger that are kept elsewhere: in statements, and in what ``dptrain budget show`` printed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dptrain.errors import ConfigError


def read_heads(files: Iterable[str]) -> list[dict[str, Any]]:
    """{"ledger_id", "sequence", "hash"} of each file: a statement (block ``composition``), or JSON with a ``head``.

    Raises:
        ConfigError: a file cannot be read, or names no head.
    """
    return [_read(Path(name).expanduser()) for name in files]


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        block = found.get("composition") or found
        head = block.get("head") or block
        named = {"ledger_id": head.get("ledger_id", block.get("ledger_id")), "hash": str(head["hash"])}
        return {**named, "sequence": int(head["sequence"])}
    except OSError as error:
        raise ConfigError("heads", file, f"cannot be read ({error.strerror})", "name a file that exists") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError("heads", file, "names no ledger head", "give a statement of a later run") from error
