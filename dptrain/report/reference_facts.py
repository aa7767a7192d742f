"""What reference models found, as the report says it. Every number comes from the file of the audit."""

from __future__ import annotations

from typing import Any

from dptrain.report.phrases import MISSING, duration, interval, is_number, percent, plain, rate
from dptrain.report.record import RunRecord

Rows = list[tuple[str, ...]]
SHOWN = 15
"""Groups that are shown, of all that the audit's file holds."""


def found(record: RunRecord) -> dict[str, Any]:
    """The audit's references; empty where none were trained."""
    table = record.audit.get("references")
    return table if isinstance(table, dict) else {}


def summary(record: RunRecord) -> list[tuple[str, str]]:
    """How many references, how trained, at what cost."""
    refs = found(record)
    if not refs:
        return []
    pool, seeds = _table(refs.get("pool")), refs.get("seeds") or []
    numbers = sorted({entry.get("seed") for entry in seeds if isinstance(entry, dict)}, key=str)
    return [
        ("References", f"{plain(refs.get('count'))}, each trained on half of {plain(pool.get('units'))} units"),
        ("Way", str(refs.get("way") or MISSING)),
        ("Time of this audit", f"{duration(refs.get('seconds'))}, {plain(refs.get('cpu_seconds'))} CPU s"),
        ("Seeds of pairs", ", ".join(str(number) for number in numbers) or MISSING),
    ]


def between(record: RunRecord) -> Rows:
    """Attack, rate, mean over references as targets with its interval, standard deviation over them."""
    rows = []
    for name, entries in _table(found(record).get("between_models")).items():
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict):
                targets = f"{percent(entry.get('sd'))} over {plain(entry.get('targets'))} models"
                rows.append((name.replace("_", " "), rate(entry.get("fpr")), interval(entry, as_percent=True), targets))
    return rows


def exposed(record: RunRecord) -> tuple[str, Rows]:
    """A sentence about the groups and a row for each of the most exposed: name, members, share found, interval."""
    table = _table(found(record).get("exposed"))
    if not table:
        return "", []
    if table.get("refused"):
        return f"Not shown: {table['refused']}.", []
    rows = []
    for entry in table.get("groups") or []:
        if isinstance(entry, dict):
            share = interval({**entry, "value": entry.get("found")}, as_percent=True)
            by = str(entry.get("by") or table.get("by") or "")
            rows.append((f"{by} {entry.get('group')}".strip(), plain(entry.get("members")), share))
    small = table.get("suppressed") or 0
    hidden = f" {plain(small)} groups of fewer than 20 members are not shown." if small else ""
    way = str(table.get("attack") or "").replace("_", " ")
    words = f"Members of each group that {way} finds at {rate(table.get('fpr'))} false positives."
    if is_number(table.get("together")):
        sure = rate(table.get("confidence"))
        words += f" All {plain(table['together'])} intervals hold together with {sure} confidence (Bonferroni)."
    return words + hidden, rows[:SHOWN]


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
