"""A comparison as one page: a figure and a table for each set of runs that share their axes."""

from __future__ import annotations

from html import escape
from typing import Any

from dptrain.report.compare import Comparison
from dptrain.report.compare_rows import columns, other_runs, panel_runs, panel_title
from dptrain.report.pareto import pareto_svg, score
from dptrain.report.parts import bullets, page, section
from dptrain.report.phrases import epsilon_up

TIER = {"internal": "internal: stays in the building", "public": "public tier"}
CAPTION = (
    "Each dot is a run, numbered as in the table; up and to the left is better. A filled dot is a run that no other "
    "beats; the line is the best score to be had for at most that ε."
)
MADE = "Made by dptrain from the files of the run folders."


def render_comparison_page(shown: Comparison) -> str:
    """The whole page, from the comparison's plain data alone."""
    body = [_header(shown)]
    for index, panel in enumerate(shown["panels"], 1):
        body.append(_panel(shown, panel, f"pareto{index}"))
    rest = other_runs(shown)
    if rest:
        title = "Not comparable with any other" if shown["panels"] else "Runs"
        body.append(section(title, table(*columns(shown, None, rest))))
    body.append(section("Before you compare", bullets(shown["notes"])))
    left = [f"{entry['folder']}: {entry['why']}" for entry in shown["left_out"]]
    body.append(section("Left out", bullets(left)))
    return page(f"{len(shown['runs'])} runs compared", body, MADE)


def story(panel: dict[str, Any]) -> str:
    """The panel in one breath: its most private run, its best one, and what privacy costs beside a baseline."""
    best = sorted((p for p in panel["points"] if p["on_front"]), key=lambda p: p["epsilon"])
    if not best:
        return "No run could be placed."
    first, last = best[0], best[-1]
    text = f"{score(panel['metric'], first['value'])} at ε = {epsilon_up(first['epsilon'])}"
    if (last["epsilon"], last["value"]) != (first["epsilon"], first["value"]):
        text += f", {score(panel['metric'], last['value'])} at ε = {epsilon_up(last['epsilon'])}"
    if panel["baselines"]:
        pick = max if panel["better"] == "higher" else min
        text += f"; without privacy {score(panel['metric'], pick(b['value'] for b in panel['baselines']))}"
    return f"{text}."


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A table whose cells carry their heading along, for narrow screens."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    made = []
    for row in rows:
        cells = "".join(
            f'<td data-label="{escape(label)}">{escape(cell)}</td>' for label, cell in zip(heads, row, strict=True)
        )
        tone = ' class="here"' if row[0].endswith("*") else ""
        made.append(f"<tr{tone}>{cells}</tr>")
    return f'<table class="wide runs"><thead><tr>{head}</tr></thead><tbody>{"".join(made)}</tbody></table>'


def _header(shown: Comparison) -> str:
    count = len(shown["runs"])
    kinds = len(shown["panels"])
    text = story(shown["panels"][0]) if kinds == 1 else f"{kinds} kinds of runs, each on axes of its own."
    text = text if kinds else "None of them has both a promise and a score."
    return (
        '<header>\n<div class="over"><span>Comparison</span>'
        f'<span class="pill {escape(shown["tier"])}">{escape(TIER[shown["tier"]])}</span></div>\n'
        f'<h1>{count} run{"" if count == 1 else "s"} compared</h1>\n<p class="story">{escape(text)}</p>\n</header>'
    )


def _panel(shown: Comparison, panel: dict[str, Any], name: str) -> str:
    drawn = pareto_svg(panel, name)
    figure = f'<figure class="large">{drawn}<figcaption>{escape(CAPTION)}</figcaption></figure>' if drawn else ""
    words = f"<p>{escape(story(panel))}</p>" if len(shown["panels"]) > 1 else ""
    return section(panel_title(panel), words + figure + table(*columns(shown, panel, panel_runs(shown, panel))))
