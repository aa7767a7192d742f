"""An account's page, for the person who answers for the data: what is spent, on what, what is left, what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dptrain.report import budget_facts as facts
from dptrain.report.budget_plots import COLOURS, budget_figures
from dptrain.report.budget_read import KnownRun, Summary
from dptrain.report.drawing import GREY
from dptrain.report.parts import bullets, column, facts_list, page, section
from dptrain.report.phrases import epsilon_up, small

MADE = "Made by dptrain from the ledger and the folders of the runs it names."
CAPTIONS = {
    "course": "A step up is a run admitted, counted whole while it is open; a step down gives back the unused part.",
    "bars": "The bars add up to what is spent: each run's part at the order of the filter that sets the account's ε. A "
    "sweep is one bar; a hatched one is still open and counts whole.",
}
ENTRIES = ("Entry", "Time (UTC)", "Run", "Purpose", "Status", "Steps", "ε of its own", "Account after")
AUDITS = ("Row", "Time (UTC)", "Run", "Look", "By", "Attacks")
MODELS = ("Run", "Time (UTC)", "Purpose", "Score", "ε it claims", "Takes up", "Audit")
SHOWN = 12
"""Models shown outright; the others are folded away."""


def render_budget_page(summary: Summary, runs: list[KnownRun]) -> str:
    """The whole page, from the account's summary and the runs it names alone. Internal tier."""
    drawn = budget_figures(summary)
    body = [_header(summary)]
    body += [f'<p class="banner" role="alert">{escape(text)}</p>' for text in facts.banners(summary)]
    body += [_cards(summary, runs), _spent(summary, drawn), _models(summary, runs), _numbers(summary), _ledger(summary)]
    return page(f"{summary['account']}: privacy budget", body, MADE)


def _header(summary: Summary) -> str:
    state, tone = ("frozen", "internal") if summary["frozen"] else ("open for new runs", "")
    return (
        '<header>\n<div class="over"><span>Privacy budget</span>'
        f'<span class="pill {tone}">{state}</span><span class="pill internal">internal: stays in the building</span>'
        f'</div>\n<h1>{escape(str(summary["account"]))}</h1>\n<p class="story">{escape(facts.story(summary))}</p>\n'
        "</header>"
    )


def _cards(summary: Summary, runs: list[KnownRun]) -> str:
    made = [
        f'<div class="card {card.tone}"><dt>{escape(card.label)}</dt>'
        f'<dd class="value">{escape(card.value)}</dd><dd class="note">{escape(card.note)}</dd></div>'
        for card in facts.cards(summary, runs)
    ]
    return '<dl class="cards">\n' + "\n".join(made) + "\n</dl>"


def _spent(summary: Summary, drawn: dict[str, str]) -> str:
    shown = "".join(
        f"<figure>{drawn[name]}<figcaption>{escape(CAPTIONS[name])}</figcaption></figure>"
        for name in ("course", "bars")
        if name in drawn
    )
    if not shown:
        shown = "<p>Nothing was charged to this account yet.</p>"
    return section("Where the budget went", f'{_gauge(summary)}<div class="two">{shown}</div>')


def _gauge(summary: Summary) -> str:
    """One bar of the length of the limit, filled by purpose, with its key."""
    limit, spent = float(summary["limit"]["epsilon"]), facts.spent(summary)
    whole = max(limit, spent)
    pieces, key = [], []
    for purpose, part, count in facts.by_purpose(summary):
        colour, name = COLOURS.get(purpose, GREY), facts.NAMES.get(purpose, purpose)
        if part > 0:
            pieces.append(f'<span style="width:{100 * part / whole:.3f}%;background:{colour}"></span>')
        swatch = f'<i style="background:{colour}"></i>'
        key.append(f"<li>{swatch}{escape(name)}: ε {escape(epsilon_up(part))} ({count:,})</li>")
    key.append(f"<li><i></i>left: ε {escape(facts.down(max(0.0, limit - spent)))}</li>")
    mark = f'<b style="left:{100 * limit / whole:.3f}%"></b>'
    words = escape(f"ε {epsilon_up(spent)} of {epsilon_up(limit)} spent")
    bar = f'<div class="gauge" role="img" aria-label="{words}">{"".join(pieces)}{mark}</div>'
    return f'{bar}<p class="limit">limit ε {escape(epsilon_up(limit))}</p><ul class="key">{"".join(key)}</ul>'


def _models(summary: Summary, runs: list[KnownRun]) -> str:
    rows = facts.models(summary, runs)
    lost = facts.without_folder(summary, runs)
    body = _model_table(rows[:SHOWN]) if rows else "<p>None was found.</p>"
    if len(rows) > SHOWN:
        body += _folded(f"{len(rows) - SHOWN} earlier ones", _model_table(rows[SHOWN:]))
    if lost:
        count = "1 run has" if len(lost) == 1 else f"{len(lost):,} runs have"
        body += _folded(f"{count} no folder under {summary.get('runs_root') or 'the folder of runs'}", bullets(lost))
    return section("Models trained on it", body)


def _model_table(rows: list[dict[str, str]]) -> str:
    made = []
    for row in rows:
        tone = ' class="alarm"' if row["audit"].startswith("claim rejected") else ""
        cells = [row["run"], row["when"], row["purpose"], row["score"], row["epsilon"], row["part"], row["audit"]]
        shown = _cells(MODELS, cells)
        made.append(f"<tr{tone}>{shown}</tr>")
        made.append(f'<tr class="said"><td colspan="{len(MODELS)}">{escape(row["sentence"])}</td></tr>')
    return _table(MODELS, made, "wide models")


def _numbers(summary: Summary) -> str:
    rows = [f"<tr>{_cells(('Number', 'ε', 'What it proves'), cells)}</tr>" for cells in facts.numbers(summary)]
    limit = summary["limit"]
    changes = [
        f"{str(change['time'])[:10]}: from {change['was']:g} to {change['epsilon']:g}: {change['reason']}"
        for change in limit.get("changes") or []
    ]
    history = column("Changes of the limit", bullets(changes))
    note = f'<p class="by">All at δ = {escape(small(limit["delta"]))}.</p>'
    return section(
        "The numbers, and what each proves", note + _table(("Number", "ε", "What it proves"), rows) + history
    )


def _ledger(summary: Summary) -> str:
    rows = [f"<tr>{_cells(ENTRIES, cells)}</tr>" for cells in facts.entry_rows(summary)]
    entries = _folded(f"All {len(rows)} entries", _table(ENTRIES, rows)) if rows else "<p>No entry yet.</p>"
    sets = [(str(one["relation"]), str(one["digest"])) for one in summary.get("datasets") or []]
    looks = [f"<tr>{_cells(AUDITS, cells)}</tr>" for cells in facts.audit_rows(summary)]
    if looks:
        entries += _folded(f"Audits ({len(looks)}): no price, for nothing is released", _table(AUDITS, looks))
    linked = column("Data sets of these people", facts_list(sets))
    return section("The ledger behind it", facts_list(facts.chain(summary)) + linked + entries)


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def _table(heads: Sequence[str], rows: list[str], style: str = "wide") -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    return f'<table class="{style}"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _cells(heads: Sequence[str], cells: Sequence[str]) -> str:
    pairs = zip(heads, cells, strict=True)
    return "".join(f'<td data-label="{escape(label)}">{escape(cell)}</td>' for label, cell in pairs)
