"""Reads JSON lines: an object a line, UTF-8. Messages name line and column, and quote nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dptrain.errors import ConfigError


def read_jsonl(path: Path, field: str, names: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of a file with one JSON object a line; blank lines are passed over.

    Args:
        path: the file.
        field: setting that named it, for errors.
        names: columns wanted; keys beside them are not looked at.

    Returns:
        Column -> N values as JSON has them; None where a line has no such key.

    Raises:
        ConfigError: a line is no UTF-8, no JSON, or no object, or no line at all has one of the columns.
    """
    columns: dict[str, list[Any]] = {name: [] for name in names}
    found: set[str] = set()
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(field, path, f"cannot be read ({type(error).__name__})", "check its rights") from error
    for number, raw in enumerate(lines, start=1):
        record = _object(path, field, number, raw)
        if record is not None:
            found |= record.keys() & columns.keys()
            for name in names:
                columns[name].append(record.get(name))
    for name in names:
        if name not in found and columns[name]:
            raise ConfigError(field, path, f"has no column '{name}'", "check its keys and the declared columns")
    return columns


def _object(path: Path, field: str, number: int, raw: bytes) -> dict[str, Any] | None:
    remedy = "give one JSON object a line, in UTF-8"
    try:
        line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        if not line.strip():
            return None
        record = json.loads(line)
    except UnicodeDecodeError as error:
        raise ConfigError(field, path, f"line {number} is not UTF-8", remedy) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(field, path, f"line {number} is not JSON", remedy) from error
    if not isinstance(record, dict):
        raise ConfigError(field, path, f"line {number} is no object", remedy)
    return record
