"""Where a certificate is kept, and what it says about the bounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dptrain.audit.bounds.certificate import broken
from dptrain.errors import ClaimRejected, ConfigError
from dptrain.run_folder import write_json


def writable(into: str | None) -> None:
    """Refuses a file that cannot be written, before minutes are spent.

    Raises:
        ConfigError: its folder does not exist, or it is itself a folder.
    """
    if into is not None and (not Path(into).parent.is_dir() or Path(into).is_dir()):
        raise ConfigError("into", into, "is not a file in a folder that exists", "name a file: into=certificate.json")


def keep(found: dict[str, Any], into: str | None) -> None:
    """Writes the certificate as JSON, where a file is named."""
    if into is not None:
        write_json(Path(into), found)


def judge(rows: Sequence[dict[str, Any]]) -> None:
    """Raises ClaimRejected (exit code 4) where a bound misses too often although its assumption holds.

    What is more than chance explains is told in ``certificate.broken``, which allows for the number of rows.
    """
    found = [f"{row['bound']} on {row['family']} ({row['miscoverage']:.1%})" for row in broken(rows)]
    if found:
        raise ClaimRejected(
            "bounds",
            ", ".join(found),
            "is above the truth too often although its assumption holds",
            "do not trust it; simulate more to be sure",
        )
