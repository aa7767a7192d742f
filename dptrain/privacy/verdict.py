"""What a verification found, line by line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

OK, UNKNOWN, MISMATCH = "ok", "unknown", "MISMATCH"
ESSENTIAL = ("schema", "signature", "signer", "epsilon")
"""Lines that must be ok, not merely unknown, for a statement to hold."""


def plain(text: object, most: int = 300) -> str:
    """Text from a stranger's file for a terminal: one line, no control characters, not endless.

    >>> plain(chr(27) + "[2J  boo")
    '?[2J boo'
    """
    folded = " ".join("".join(c if c.isprintable() or c.isspace() else "?" for c in str(text)).split())
    return folded if len(folded) <= most else folded[: most - 1] + "…"


@dataclass(frozen=True)
class Line:
    """One thing that was looked at: ``ok``, ``unknown`` (nothing to hold it against) or ``MISMATCH``."""

    name: str
    status: str
    detail: str


@dataclass
class Verdict:
    """All lines about one statement."""

    path: str
    lines: list[Line] = field(default_factory=list)
    statement: dict[str, Any] | None = None
    """As it was read; None where it could not be. Believe it only where ``holds``."""

    def add(self, name: str, status: str, detail: str) -> None:
        """One more line."""
        self.lines.append(Line(name, status, plain(detail)))

    @property
    def problems(self) -> list[str]:
        """The mismatches, as ``name: what``, and essential lines that are missing."""
        found = [f"{line.name}: {line.detail}" for line in self.lines if line.status == MISMATCH]
        fine = {line.name for line in self.lines if line.status == OK}
        if not found:
            found = [f"{name}: could not be verified" for name in ESSENTIAL if name not in fine]
        return found

    @property
    def holds(self) -> bool:
        """Whether nothing contradicts the statement, and what it rests on was verified."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "path": self.path,
            "holds": self.holds,
            "sentence": plain(self.statement.get("sentence"), 2000) if self.statement and self.holds else None,
            "lines": [{"name": line.name, "status": line.status, "detail": line.detail} for line in self.lines],
        }
