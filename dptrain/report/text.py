"""The report for a terminal: plain text, at most 80 columns, the same facts as the page."""

from __future__ import annotations

import textwrap

from dptrain.report import audit_facts, facts, reference_facts
from dptrain.report.phrases import printable
from dptrain.report.record import RunRecord

WIDTH = 80
LABEL = 30


def render_text(record: RunRecord) -> str:
    """The whole report as text, ending in a newline."""
    rule = "=" * WIDTH
    tier = "internal report: stays in the building" if record.tier == "internal" else "public report"
    lines = [rule, *_wrap(f"{record.run_id}   ({tier})"), *_wrap(facts.story(record))]
    banner = facts.no_promise(record)
    if banner:
        lines += ["", *_wrap(f"!!  {banner}  !!".upper())]
    lines += [rule, "", *_table([(f"{c.label}", f"{c.value}  ({c.note})") for c in facts.cards(record)])]
    sentence = str(record.get("statement.sentence") or "No statement was made.")
    lines += _section("What was promised", _wrap(sentence) + _table(facts.promise(record)))
    lines += _section("Holds if", _bullets([f"{a}: {b}" for a, b in facts.assumptions(record)]))
    lines += _section("Not covered", _bullets(facts.not_covered(record)))
    lines += _section("What it cost", _table(facts.cost(record)))
    lines += _section(
        "The same guarantee at other δ", _table([(f"δ = {d}", f"ε = {e}") for d, e in facts.epsilon_table(record)])
    )
    limits = [(f"at {alarms} false alarms", f"at most {found} of members") for alarms, found in facts.limits(record)]
    lines += _section("What anyone can find out, at most", _table(limits))
    lines += _section("Mind", _bullets(facts.cautions(record)))
    lines += _section("How good it is", _table(facts.final_metrics(record)))
    if record.tier == "internal":
        lines += _section("What an attack found", _attacks(record))
        sentence, rows = audit_facts.canaries(record)
        lines += _section("What canaries say", _wrap(sentence) + _table(rows))
        lines += _section("What reference models add", _references(record))
    lines += _section("Run", _table(facts.run_facts(record)))
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _attacks(record: RunRecord) -> list[str]:
    if not record.audit:
        return _wrap("No audit yet. 'dptrain audit' attacks this checkpoint.")
    lines = _wrap(facts.verdict(record)) + _wrap(facts.audit_sample(record))
    lines += _table(audit_facts.epsilon_rows(record))
    for attack in facts.attacks(record):
        rows = [("AUC", attack.auc)] + [(f"members found at {fpr} FPR", text) for fpr, text in attack.found]
        lines += ["", *_wrap(f"Attack: {attack.name}"), *_table(rows)]
    return lines


def _references(record: RunRecord) -> list[str]:
    """How they were trained, how far attacks' figures move between trainings, whom they expose."""
    lines = _table(reference_facts.summary(record))
    between = reference_facts.between(record)
    if between:
        lines += ["", *_wrap("Each reference attacked by the others; the interval is of the mean, between models.")]
        lines += _table([(f"{name}, {fpr} FPR", f"{found}; {spread}") for name, fpr, found, spread in between])
    sentence, groups = reference_facts.exposed(record)
    if sentence:
        lines += ["", *_wrap(f"Most exposed. {sentence}")]
        lines += _table([(name, f"{found} of {members}") for name, members, found in groups])
    return lines


def _section(title: str, body: list[str]) -> list[str]:
    return ["", title, "-" * len(title), *body] if body else []


def _table(rows: list[facts.Row]) -> list[str]:
    lines = []
    for label, value in rows:
        lines += _wrap(f"{printable(label):<{LABEL}} {value}", indent=LABEL + 1, keep=True)
    return lines


def _bullets(entries: list[str]) -> list[str]:
    return [line for entry in entries for line in _wrap(f"- {entry}", indent=2)]


def _wrap(text: str, indent: int = 0, keep: bool = False) -> list[str]:
    """Folds one paragraph; ``keep`` leaves the spaces that align a column."""
    text = printable(text) if keep else " ".join(printable(text).split())
    return textwrap.wrap(text, WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False)
