"""metrics.jsonl: one line an evaluation, written before any tracker hears of it. The run folder is the truth."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends records to a file; each is on disk as one whole line when ``append`` returns.

    A line goes out in a single write to a file opened for appending, so that a reader sees it whole or
    not at all, save for the last line of a file whose writer was killed (see ``read_metrics``).

    Args:
        path: the file; made (mode 0600) when absent, its folder must exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        if _is_torn(path):
            os.write(self._handle, b"\n")

    def append(self, record: dict[str, Any]) -> None:
        """Writes one record. NaN and infinities, which JSON does not have, are written as null."""
        line = json.dumps({name: _finite(value) for name, value in record.items()}, allow_nan=False)
        data = line.encode() + b"\n"
        while data:
            data = data[os.write(self._handle, data) :]

    def close(self) -> None:
        """Forces the lines to disk and closes the file; further calls do nothing."""
        if self._handle >= 0:
            os.fsync(self._handle)
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file in the order written; a line that is torn or no JSON object is left out.

    An absent file holds no records.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_torn(path: Path) -> bool:
    """Whether a killed writer left the last line without its end."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
