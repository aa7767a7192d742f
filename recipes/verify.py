"""Checks what a checkpoint promises, without its maker's help: numbers recomputed, signature, files, ledger head.

dptrain verify path=runs/RUN
dptrain verify path=checkpoint key=alice.pub
python recipes/verify.py path=statement.json format=json
"""

from __future__ import annotations

import json
import sys
from typing import Any

from dptrain.cli import guarded
from dptrain.config_verify import VerifyConfig
from dptrain.launch import launch


def run(config: VerifyConfig) -> dict[str, Any]:
    """Prints one line a thing that was checked; returns the verdict as plain data.

    Raises:
        ClaimRejected: something contradicts the statement, or it cannot be verified (exit code 4).
        ConfigError: there is no statement, or ``key``, ``heads`` or ``after`` cannot be read.
    """
    from dptrain.errors import ClaimRejected
    from dptrain.privacy.verify import verified

    verdict = verified(config.path, config.key, config.heads, config.after)
    found = verdict.to_json()
    if config.format == "json":
        print(json.dumps(found, indent=2))
    else:
        for line in verdict.lines:
            print(f"{line.name:<12} {line.status:<9} {line.detail}")
        if verdict.holds:
            print(f"\n{found['sentence']}")
    if not verdict.holds:
        raise ClaimRejected("path", config.path, verdict.problems[0], "do not rely on this statement")
    return found


def main(arguments: list[str]) -> None:
    """Entry of ``dptrain verify``."""
    launch("verify", arguments)


if __name__ == "__main__":
    sys.exit(guarded("verify", sys.argv[1:]))
