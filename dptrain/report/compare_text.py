"""A comparison for a terminal."""

from __future__ import annotations

import textwrap

from dptrain.report.compare import Comparison
from dptrain.report.compare_rows import columns, other_runs, panel_runs, panel_title
from dptrain.report.phrases import printable

NAME = 28
WIDTH = 100


def render_comparison(shown: Comparison) -> str:
    """Every run in a table, one table a set of shared axes; ends in a newline."""
    lines: list[str] = []
    for panel in shown["panels"]:
        runs = panel_runs(shown, panel)
        lines += [_plain(panel_title(panel)), *_table(*columns(shown, panel, runs)), ""]
    rest = other_runs(shown)
    if rest:
        title = "Not comparable with any other" if shown["panels"] else "Runs"
        lines += [title, *_table(*columns(shown, None, rest)), ""]
    if any(point["on_front"] for panel in shown["panels"] for point in panel["points"]):
        lines.append("* no run shown is both more private and better")
    for note in [*shown["notes"], *(f"Left out: {e['folder']}: {e['why']}." for e in shown["left_out"])]:
        lines += textwrap.wrap(f"- {_plain(note)}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    cells = [[_short(cell) if heads[k] == "Run" else _plain(cell) for k, cell in enumerate(row)] for row in rows]
    widths = [max(len(head), *(len(row[k]) for row in cells)) for k, head in enumerate(heads)]
    numeric = [k for k, head in enumerate(heads) if head not in ("#", "Run", "Model", "Device", "Status", "Score")]
    lines = []
    for row in [heads, ["-" * width for width in widths], *cells]:
        fitted = [cell.rjust(widths[k]) if k in numeric else cell.ljust(widths[k]) for k, cell in enumerate(row)]
        lines.append("  ".join(fitted))
    return lines


def _short(name: str) -> str:
    """A run's name within the column, its ends kept: sweeps differ at the end."""
    name = _plain(name)
    return name if len(name) <= NAME else f"{name[: NAME // 2 - 1]}..{name[-(NAME // 2 - 1) :]}"


def _plain(text: str) -> str:
    return " ".join(printable(text).split())
