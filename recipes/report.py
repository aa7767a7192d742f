"""One page of a finished run: what was promised, what it cost, what an attack found. Or one of a budget account.

dptrain report run=runs/RUN
dptrain report dataset=NAME
python recipes/report.py run=runs/RUN tier=public
"""

from __future__ import annotations

import sys
from typing import Any

from dptrain.cli import guarded
from dptrain.config_report import ReportConfig
from dptrain.launch import launch


def run(config: ReportConfig) -> dict[str, Any]:
    """Writes report.html (or report.public.html), prints the table and the six-line summary.

    With ``dataset``: the page of that budget account, and its numbers in a few lines.
    """
    return of_account(config) if config.dataset is not None else of_run(config, str(config.run))


def of_run(config: ReportConfig, run: str) -> dict[str, Any]:
    """The page of one run."""
    from dptrain.report.summary import six_lines
    from dptrain.report.write import report_text, write_figures, write_report
    from dptrain.run_folder import open_run
    from dptrain.tracking.attach import attach_files
    from dptrain.tracking.console import summary

    folder = open_run(run)
    page = write_report(folder, config.tier)
    public = write_report(folder, "public")
    attach_files(folder, [public, *write_figures(folder, "public", folder.figures)], config.tracking_uri)
    print(report_text(folder, config.tier))
    print()
    summary(six_lines(folder, config.tier))
    return {"page": str(page)}


def of_account(config: ReportConfig) -> dict[str, Any]:
    """The page of one budget account."""
    from dptrain.report.write import write_budget
    from dptrain.tracking.console import summary

    page, lines = write_budget(config.ledger_uri, str(config.dataset), config.runs, config.into)
    summary(lines)
    return {"page": str(page)}


def main(arguments: list[str]) -> None:
    """Entry of ``dptrain report``."""
    launch("report", arguments)


if __name__ == "__main__":
    sys.exit(guarded("report", sys.argv[1:]))
