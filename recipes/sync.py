"""Sends the tracker what it missed of a run: it was down, slow, or the run was made without it.

dptrain sync run=runs/RUN
dptrain sync run=runs/RUN tracking.uri=https://SERVER
python recipes/sync.py run=runs/RUN tracking.uri=http://SERVER:5000 tracking.allow_http=true
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from dptrain.cli import guarded
from dptrain.errors import ConfigError, suggest

KEYS = ("run", "tracking.uri", "tracking.allow_http")


def run(folder: str, uri: str | None = None, allow_http: bool = False) -> dict[str, Any]:
    """Sends what is missing, prints where it went; nothing arrives twice, however often this is called.

    Raises:
        ConfigError: no run folder, no store, or the store did not take everything.
    """
    from dptrain.tracking.console import summary
    from dptrain.tracking.replay import replay

    made = replay(Path(folder), uri, allow_http)
    summary([("synced", f"{made['points']} metric values of {folder}"), ("store", made["uri"]), ("as", made["run_id"])])
    return made


def main(arguments: list[str]) -> None:
    """Entry of ``dptrain sync``."""
    if {"--help", "-h"} & set(arguments):
        print(__doc__)
        return
    given: dict[str, str] = {}
    for word in arguments:
        key, equals, value = word.partition("=")
        if not equals or key not in KEYS:
            raise ConfigError(key or "command line", value, "is not a setting of 'dptrain sync'", suggest(key, KEYS))
        given[key] = value
    if not given.get("run"):
        raise ConfigError("run", None, "is needed", "give run=runs/RUN")
    allow = given.get("tracking.allow_http", "false").lower()
    if allow not in ("true", "false"):
        raise ConfigError("tracking.allow_http", allow, "is neither true nor false", "give tracking.allow_http=true")
    run(given["run"], given.get("tracking.uri"), allow == "true")


if __name__ == "__main__":
    sys.exit(guarded("sync", sys.argv[1:]))
