"""Runs side by side: what each promised, spent, reached and cost.

dptrain compare runs=[runs/A,runs/B]
dptrain compare runs=runs
python recipes/compare.py runs=runs format=json
"""

from __future__ import annotations

import json
import sys
from typing import Any

from dptrain.cli import guarded
from dptrain.config_compare import CompareConfig
from dptrain.launch import launch


def run(config: CompareConfig) -> dict[str, Any]:
    """Prints the table (or JSON) and writes the page and its figures; returns the comparison as plain data.

    Raises:
        ConfigError: a run is missing, unfinished or named twice.
    """
    from dptrain.report.compare_text import render_comparison
    from dptrain.report.write import read_comparison, write_comparison

    shown = read_comparison(config.runs, config.tier)
    written = write_comparison(shown, config.into) if config.into else []
    if config.format == "json":
        print(json.dumps(shown, indent=2, allow_nan=False))
    else:
        print(render_comparison(shown), end="")
        for path in written:
            print(f"wrote {path}")
    return shown


def main(arguments: list[str]) -> None:
    """Entry of ``dptrain compare``."""
    launch("compare", arguments)


if __name__ == "__main__":
    sys.exit(guarded("compare", sys.argv[1:]))
