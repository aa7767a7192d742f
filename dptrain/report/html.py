"""The report as one page: no scripts, no addresses outside it, every string from the run escaped."""

from __future__ import annotations

from html import escape

from dptrain.report import audit_facts, facts, reference_facts
from dptrain.report.parts import bullets, column, facts_list, page, section
from dptrain.report.phrases import small
from dptrain.report.plots import figures
from dptrain.report.record import RunRecord

CAPTIONS = {
    "progress": ("Measured on public rows while training.", " ε is what had been spent when the score was measured."),
    "tradeoff": ("", "What each unit of privacy cost bought; the large dot is the finished model."),
    "errors": (
        "",
        "No test of whether one unit took part comes to lie in the grey region, whoever makes it.",
    ),
    "roc": (
        "Each curve is one attack: the further above the dashed line, the more members it finds. The band is what each"
        " point of one attack's curve may be, by itself, given its threshold.",
        " The shaded region is everything the promise allows; a curve surely outside it would contradict that.",
    ),
}
"""Figure -> what it shows, and what more it shows of a private run."""
TIER = {"internal": "internal: stays in the building", "public": "public tier"}


def render_html(record: RunRecord) -> str:
    """The whole page. The public tier names nothing of the internal one."""
    drawn = figures(record)
    body = [
        _header(record),
        _banner(record),
        _cards(record),
        _promise(record),
        _limits(record, drawn),
        _audit(record, drawn) if record.tier == "internal" else "",
        _cost(record),
        _course(record, drawn),
        section("The run", facts_list(facts.run_facts(record))),
    ]
    return page(f"{record.run_id}: privacy report", body)


def _header(record: RunRecord) -> str:
    names = [str(record.get(f"result.{part}") or "") for part in ("data", "model")]
    title = " · ".join(name for name in names if name) or record.run_id
    status = facts.STATUS.get(str(record.get("result.status")), str(record.get("result.status")))
    return (
        f'<header>\n<div class="over"><span>Privacy report</span><span>{escape(record.run_id)}</span>'
        f'<span class="pill">{escape(status)}</span><span class="pill {record.tier}">{TIER[record.tier]}</span></div>\n'
        f'<h1>{escape(title)}</h1>\n<p class="story">{escape(facts.story(record))}</p>\n</header>'
    )


def _banner(record: RunRecord) -> str:
    text = facts.no_promise(record)
    return f'<p class="banner" role="alert">{escape(text)}</p>' if text else ""


def _cards(record: RunRecord) -> str:
    made = [
        f'<div class="card {card.tone}"><dt>{escape(card.label)}</dt>'
        f'<dd class="value">{escape(card.value)}</dd><dd class="note">{escape(card.note)}</dd></div>'
        for card in facts.cards(record)
    ]
    return '<dl class="cards">\n' + "\n".join(made) + "\n</dl>"


def _promise(record: RunRecord) -> str:
    sentence = str(record.get("statement.sentence") or "No statement was made for this run.")
    tone = "promise" if record.private else "promise none"
    parts = [f'<p class="{tone}">{escape(sentence)}</p>', facts_list(facts.promise(record))]
    held = "".join(
        f'<li>{escape(claim)}<span class="by">{escape(by)}</span></li>' for claim, by in facts.assumptions(record)
    )
    columns = column("It holds if", f"<ul>{held}</ul>" if held else "")
    columns += column("It does not cover", bullets(facts.not_covered(record)))
    return section("What was promised", "\n".join(parts) + (f'<div class="two">{columns}</div>' if columns else ""))


def _cost(record: RunRecord) -> str:
    if not record.private:
        return ""
    claimed, here = small(record.get("statement.guarantee.delta")), ' class="here"'
    rows = "".join(
        f"<tr{here if delta == claimed else ''}><td>{escape(delta)}</td><td>{escape(epsilon)}</td></tr>"
        for delta, epsilon in facts.epsilon_table(record)
    )
    table = f"<table><thead><tr><th>δ</th><th>ε</th></tr></thead><tbody>{rows}</tbody></table>" if rows else ""
    note = '<p class="by">One guarantee, read at several δ: a smaller chance of failure costs a larger ε.</p>'
    columns = f"<div>{facts_list(facts.cost(record))}</div>" + column("ε at other δ", note + table if table else "")
    return section("What it cost", f'<div class="two">{columns}</div>' + bullets(facts.cautions(record)))


def _course(record: RunRecord, drawn: dict[str, str]) -> str:
    shown = "".join(_figure(name, drawn, record) for name in ("progress", "tradeoff"))
    figures_ = f'<div class="two">{shown}</div>' if shown else ""
    return section("How good it is", figures_ + column("Finished model", facts_list(facts.final_metrics(record))))


def _limits(record: RunRecord, drawn: dict[str, str]) -> str:
    """The trade-off curve of the promise and a few points of it in words."""
    if "errors" not in drawn:
        return ""
    rows = facts.limits(record)
    cells = "".join(f"<tr><td>{escape(fpr)}</td><td>{escape(tpr)}</td></tr>" for fpr, tpr in rows)
    head = "<thead><tr><th>False alarms</th><th>Members found, at most</th></tr></thead>"
    words = f'<p class="by">{escape(facts.limits_source(record))}</p>'
    table = f"<table>{head}<tbody>{cells}</tbody></table>"
    return section(
        "What anyone can find out, at most",
        f'<div class="two">{_figure("errors", drawn, record)}<div>{table}{words}</div></div>',
    )


def _audit(record: RunRecord, drawn: dict[str, str]) -> str:
    title = "What an attack found"
    if not record.audit:
        return section(title, "<p>Not audited yet. <code>dptrain audit</code> attacks this checkpoint.</p>")
    rates = list(dict.fromkeys(fpr for attack in facts.attacks(record) for fpr, _ in attack.found))
    head = "".join(f"<th>{escape(label)}</th>" for label in ("Attack", "AUC", *(_found_at(fpr) for fpr in rates)))
    rows = "".join(_attack_row(attack, rates) for attack in facts.attacks(record))
    table = f'<table class="attacks"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>' if rows else ""
    words = f"<p><strong>{escape(facts.verdict(record))}</strong></p>" if facts.verdict(record) else ""
    words += f'<p class="by">{escape(facts.audit_sample(record))}</p>'
    words += facts_list(audit_facts.epsilon_rows(record))
    figure = f'<div class="roc">{_figure("roc", drawn, record)}</div>'
    return section(title, f"{words}{table}{figure}{_canaries(record)}{_references(record)}")


def _canaries(record: RunRecord) -> str:
    """What canaries say about the claim; empty where none were planted."""
    sentence, rows = audit_facts.canaries(record)
    return column("Canaries", f"<p>{escape(sentence)}</p>" + facts_list(rows)) if sentence else ""


def _references(record: RunRecord) -> str:
    """What reference models add: how far figures move between trainings, and whom they expose."""
    if not reference_facts.found(record):
        return ""
    sentence, groups = reference_facts.exposed(record)
    between = _plain_table(("Attack", "False positives", "Members found", "Deviation"), reference_facts.between(record))
    note = '<p class="by">Each reference attacked by the others; the interval is of the mean, between models.</p>'
    exposed = f'<p class="by">{escape(sentence)}</p>' + _plain_table(("Group", "Members", "Found"), groups)
    columns = column("The same recipe, trained again", note + between if between else "")
    columns += column("Most exposed", exposed if sentence else "")
    facts_ = column("Reference models", facts_list(reference_facts.summary(record)))
    return f'{facts_}<div class="two">{columns}</div>'


def _plain_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    cells = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f"<table><thead><tr>{''.join(f'<th>{escape(h)}</th>' for h in head)}</tr></thead><tbody>{cells}</tbody></table>"
    )


def _attack_row(attack: facts.Attack, rates: list[str]) -> str:
    found = dict(attack.found)
    cells = f'<td>{escape(attack.name)}</td><td data-label="AUC">{escape(attack.auc)}</td>'
    for fpr in rates:
        text = found.get(fpr, "")
        tone = ' class="refused"' if text.startswith("not shown") else ""
        cells += f'<td{tone} data-label="{escape(_found_at(fpr))}">{escape(text)}</td>'
    return f"<tr>{cells}</tr>"


def _found_at(fpr: str) -> str:
    return f"Members found at {fpr} false positives"


def _figure(name: str, drawn: dict[str, str], record: RunRecord) -> str:
    if name not in drawn:
        return ""
    always, if_private = CAPTIONS[name]
    caption = always + (if_private if record.private else "")
    return f"<figure>{drawn[name]}<figcaption>{escape(caption)}</figcaption></figure>"
