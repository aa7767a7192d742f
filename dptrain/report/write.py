"""From a run folder to a report: the three functions a recipe calls."""

from __future__ import annotations

from pathlib import Path

from dptrain.report.html import render_html
from dptrain.report.plots import figures
from dptrain.report.record import read_record
from dptrain.report.text import render_text
from dptrain.run_folder import RunFolder, write_text


def write_report(folder: RunFolder, tier: str) -> Path:
    """Writes the page of a tier, whole or not at all: ``report.html`` (internal) or ``report.public.html``.

    Raises:
        ConfigError: a file of the folder is unreadable, or the tier is unknown.
    """
    page = render_html(read_record(folder, tier))
    path = folder.report if tier == "internal" else folder.public_report
    write_text(path, page)
    return path


def report_text(folder: RunFolder, tier: str) -> str:
    """The same facts for a terminal, at most 80 columns."""
    return render_text(read_record(folder, tier))


def write_figures(folder: RunFolder, tier: str, into: Path) -> list[Path]:
    """Writes each figure as ``NAME.svg`` into a folder (made when absent), for a tracker's artifacts."""
    into.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, svg in figures(read_record(folder, tier)).items():
        path = into / f"{name}.svg"
        write_text(path, svg + "\n")
        paths.append(path)
    return paths
