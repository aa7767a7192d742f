"""From run folders to reports and comparisons: the functions a recipe calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dptrain.errors import ConfigError
from dptrain.report import budget_facts
from dptrain.report.brief import brief
from dptrain.report.budget_page import render_budget_page
from dptrain.report.budget_read import read_budget
from dptrain.report.compare import Comparison, comparison
from dptrain.report.compare_page import render_comparison_page
from dptrain.report.find_runs import find_runs
from dptrain.report.html import render_html
from dptrain.report.pareto import pareto_svg, write_png
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


def read_comparison(wanted: Sequence[str], tier: str) -> Comparison:
    """The runs that ``wanted`` names, side by side as plain data.

    Raises:
        ConfigError: a run is missing, unfinished or named twice, or the tier is unknown.
    """
    found = find_runs(wanted)
    briefs = [brief(read_record(folder, tier), folder.path) for folder in found.runs]
    return comparison(briefs, tier, found.left_out)


def write_comparison(shown: Comparison, into: str) -> list[Path]:
    """Writes ``compare.html`` (public tier: ``compare.public.html``) and each figure as SVG and PNG beside it."""
    folder = Path(into).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("into", into, f"cannot be made ({error.strerror})", "name another folder") from error
    ending = "" if shown["tier"] == "internal" else ".public"
    page = folder / f"compare{ending}.html"
    write_text(page, render_comparison_page(shown))
    paths = [page]
    for number, panel in enumerate(shown["panels"], 1):
        drawn = pareto_svg(panel)
        if drawn is None:
            continue
        stem = f"pareto{'' if number == 1 else number}{ending}"
        write_text(folder / f"{stem}.svg", drawn + "\n")
        write_png(panel, folder / f"{stem}.png")
        paths += [folder / f"{stem}.svg", folder / f"{stem}.png"]
    return paths


def write_budget(uri: str | None, name: str, runs: str, into: str | None) -> tuple[Path, list[tuple[str, str]]]:
    """Writes the page of an account; returns it and the lines that a terminal shows.

    Args:
        uri: the ledger; None for the user's own.
        name: the account.
        runs: folder that the account's runs lie in; those not found there are named on the page.
        into: the page; None for ``budget-NAME.html`` in the working directory.

    Raises:
        ConfigError: no such ledger or account.
        LedgerBroken: the ledger contradicts itself (exit code 3).
    """
    summary, known = read_budget(uri, name, Path(runs).expanduser())
    path = Path(into).expanduser() if into else Path(f"budget-{name}.html")
    write_text(path, render_budget_page(summary, known))
    lines = [(card.label.lower(), f"{card.value} ({card.note})") for card in budget_facts.cards(summary, known)]
    chain = dict(budget_facts.chain(summary)).get("Chain", "")
    return path, [("account", budget_facts.story(summary)), *lines, ("chain", chain), ("page", str(path))]
