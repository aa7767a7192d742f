"""Whether an engine, a model and a loop do what a plan promises, found out on made-up rows before real ones are read.

dptrain conform experiment=quickstart
python recipes/conform.py data=fashion_mnist model=tanh_cnn clipping.engine=vmap execution.dtype=bfloat16
dptrain conform conform.subject=opacus
"""

from __future__ import annotations

import json
import sys
from typing import Any

from dptrain.cli import guarded
from dptrain.config_conform import ConformConfig
from dptrain.errors import ClaimRejected
from dptrain.launch import launch


def run(config: ConformConfig) -> dict[str, Any]:
    """Runs every check, prints a line each, and returns them (``checks``) as plain data.

    Reads no private row and opens no account of the user's; one made-up run writes into a temporary folder.

    Raises:
        ClaimRejected: a check failed.
        ConfigError: what a training run would refuse before its first row.
    """
    from dptrain.conformance.kit import conform, line, open_conform

    found: list[dict[str, Any]] = []
    for result in conform(open_conform(config), config):
        found.append({"check": result.check, "passed": result.passed, "says": result.says, "step": result.step})
        if config.format == "text":
            print(line(result), flush=True)
    failed = [one["check"] for one in found if one["passed"] is False]
    if config.format == "json":
        print(json.dumps(found, indent=2, allow_nan=False))
    else:
        skipped = sum(one["passed"] is None for one in found)
        print(f"{len(found) - len(failed) - skipped} passed, {len(failed)} failed, {skipped} not applicable;", end=" ")
        print("rows were made up: no private row was read and nothing was spent")
    if failed:
        remedy = "see its line above and docs/conform.md; do not train on private rows with these settings"
        raise ClaimRejected("conform", config.conform.subject, f"failed: {', '.join(failed)}", remedy)
    return {"checks": found}


def main(arguments: list[str]) -> None:
    """Entry of ``dptrain conform``."""
    launch("conform", arguments)


if __name__ == "__main__":
    sys.exit(guarded("conform", sys.argv[1:]))
