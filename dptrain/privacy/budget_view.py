"""What ``dptrain budget`` prints: plain data first, and the same at a glance."""

from __future__ import annotations

from typing import Any

from dptrain.privacy.chain import Verdict
from dptrain.privacy.ledger import Ledger
from dptrain.privacy.ledger_totals import PROVES

AUDIT_COLUMNS = ("row", "created", "run_id", "look", "by", "attacks")
COLUMNS = ("entry", "created", "run_id", "purpose", "status", "steps", "epsilon", "account after")


def account_data(ledger: Ledger, name: str) -> dict[str, Any]:
    """One account as plain data: limit, spent, the two numbers beside it, entries, data sets, head."""
    totals = ledger.totals(name)
    account = ledger.account(name)
    head = ledger.head()
    return {
        "account": account.name,
        "unit": account.unit,
        "created": account.created,
        "note": account.note,
        "limit": {"epsilon": account.epsilon, "delta": account.delta, "changes": account.limits},
        "frozen": account.frozen is not None,
        "frozen_reason": account.frozen,
        "spent": {"epsilon": totals.epsilon, "proves": PROVES["epsilon"]},
        "settled": {"epsilon": totals.epsilon_settled, "proves": PROVES["epsilon_settled"]},
        "planned_pld": {"epsilon": totals.planned_pld, "proves": PROVES["planned_pld"]},
        "odometer": {"epsilon": totals.odometer, "proves": PROVES["odometer"]},
        "remaining": totals.remaining,
        "entries": totals.entries,
        "audits": [note.to_json() for note in account.audits],
        "datasets": [{"digest": digest, "relation": relation} for digest, relation in account.datasets.items()],
        "head": head.to_json(),
    }


def account_text(data: dict[str, Any]) -> str:
    """Six lines, a table of the entries, and one of the audits where there were any."""
    limit, entries, audits = data["limit"], data["entries"], data["audits"]
    open_now = sum(entry["status"] in ("reserved", "running") for entry in entries)
    purposes: dict[str, int] = {}
    for entry in entries:
        purposes[entry["purpose"]] = purposes.get(entry["purpose"], 0) + 1
    kinds = ", ".join(f"{count} {purpose}" for purpose, count in purposes.items())
    state = f"frozen: {data['frozen_reason']}" if data["frozen"] else "open for new runs"
    raised = "".join(f"; {change['was']:g} until {change['time'][:10]}" for change in limit["changes"])
    lines = [
        f"account    {data['account']} (protects a {data['unit']}), {state}",
        f"limit      epsilon {limit['epsilon']:g} at delta {limit['delta']:g}{raised}",
        f"spent      {_number(data['spent']['epsilon'])}   {data['spent']['proves']}",
        f"remaining  {_number(data['remaining'])}   'dptrain budget forecast' says which runs that is",
        f"beside it  {_number(data['planned_pld']['epsilon'])} planned together; "
        f"{_number(data['odometer']['epsilon'])} odometer: neither is enforced, see format=json",
        f"entries    {len(entries)}" + (f" ({kinds}); {open_now} open" if entries else ""),
    ]
    if entries:
        lines += ["", *table(COLUMNS, [_entry_row(entry) for entry in entries])]
    if audits:
        checkpoints = len({note["bundle"] for note in audits})
        seen = f"{_counted(len(audits), 'look')} at {_counted(checkpoints, 'checkpoint')}"
        lines += ["", f"audits     {seen}; they read private rows and release nothing: no price", ""]
        lines += table(AUDIT_COLUMNS, [_audit_row(note) for note in audits])
    return "\n".join(lines)


def overview_data(ledger: Ledger) -> dict[str, Any]:
    """Every account in a line, and the head."""
    accounts = [
        {
            "account": account.name,
            "unit": account.unit,
            "limit": {"epsilon": account.epsilon, "delta": account.delta},
            "spent": account.value,
            "remaining": max(0.0, account.epsilon - account.value),
            "entries": len(account.entries),
            "frozen": account.frozen is not None,
        }
        for account in ledger.accounts()
    ]
    return {"ledger": ledger.store.place, "accounts": accounts, "head": ledger.head().to_json()}


def overview_text(data: dict[str, Any]) -> str:
    """The accounts as a table."""
    if not data["accounts"]:
        return f"{data['ledger']}: no account yet; 'dptrain budget create dataset=NAME epsilon=8 delta=1e-5' makes one"
    names = ("account", "unit", "limit", "delta", "spent", "remaining", "entries", "")
    rows = [
        [
            row["account"],
            row["unit"],
            f"{row['limit']['epsilon']:g}",
            f"{row['limit']['delta']:g}",
            _number(row["spent"]),
            _number(row["remaining"]),
            str(row["entries"]),
            "frozen" if row["frozen"] else "",
        ]
        for row in data["accounts"]
    ]
    return "\n".join(table(names, rows))


def forecast_text(data: dict[str, Any]) -> str:
    """One line a size."""
    shape, limit = data["shape"], data["limit"]
    lines = [
        f"account {data['account']}: epsilon {_number(data['spent'])} of {limit['epsilon']:g} spent "
        f"(delta {limit['delta']:g})" + (", frozen" if data["frozen"] else ""),
        f"runs of {shape['steps']:,} steps at sampling rate {shape['sampling_rate']:g}:",
    ]
    for row in data["fits"]:
        runs = "no more run" if row["runs"] == 0 else f"{row['runs']:,} more run" + "s" * (row["runs"] > 1)
        lines.append(f"  {runs} at epsilon {row['epsilon']:g} " + ("fits" if row["runs"] < 2 else "fit"))
    largest = data["largest"]
    lines.append(f"  the largest single run that fits: epsilon {_number(largest)}" if largest else "  nothing fits")
    return "\n".join(lines)


def verdict_text(verdict: Verdict) -> str:
    """What verification found, problems first."""
    lines = [f"ledger    {verdict.ledger_id or 'unknown'}: {verdict.rows:,} rows"]
    lines += [f"problem   {problem}" for problem in verdict.problems]
    lines += [f"note      {note}" for note in verdict.notes[:10]]
    if verdict.holds:
        signed = verdict.head.key_id if verdict.head else ""
        lines.append(f"chain     holds; signed by {signed}; prices and admissions recomputed")
    meaning = {"unknown": " (no outside head is at hand: give heads=[statement.json])"}
    lines.append(f"rollback  {verdict.rollback}{meaning.get(verdict.rollback, '')}")
    return "\n".join(lines)


def table(names: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    """Columns as wide as what they hold."""
    widths = [max(len(row[k]) for row in [list(names), *rows]) for k in range(len(names))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [list(names), *rows]
    ]


def _entry_row(entry: dict[str, Any]) -> list[str]:
    done = entry["committed_steps"] if entry["steps_done"] is None else entry["steps_done"]
    label = f"{entry['purpose']} ({entry['label']})" if entry["label"] else entry["purpose"]
    return [
        str(entry["entry"]),
        entry["created"][:16].replace("T", " "),
        entry["run_id"],
        label,
        entry["status"],
        f"{done:,} of {entry['planned_steps']:,}",
        _number(entry["epsilon"]),
        _number(entry["epsilon_account_after"]),
    ]


def _audit_row(note: dict[str, Any]) -> list[str]:
    when, who = note["created"][:16].replace("T", " "), note["by"][:16]
    return [str(note["row"]), when, note["run_id"], str(note["look"]), who, ", ".join(note["attacks"])]


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
