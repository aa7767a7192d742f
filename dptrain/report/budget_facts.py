"""What an account's page says, as plain values and strings, from the account's summary and the runs it names."""

from __future__ import annotations

from typing import Any

from dptrain.report.budget_read import KnownRun, Summary
from dptrain.report.facts import Card, Row
from dptrain.report.pareto import score
from dptrain.report.phrases import MISSING, epsilon_up, is_number, plain, small

PURPOSES = ("final", "trial", "evaluation", "audit", "debug")
NAMES = {
    "final": "final runs",
    "trial": "tuning",
    "evaluation": "evaluation",
    "audit": "audits",
    "debug": "debug (free)",
}
STATUS = {"reserved": "reserved", "running": "running", "settled": "settled", "abandoned": "closed after a crash"}
OPEN = ("reserved", "running")

Bar = dict[str, Any]


def spent(summary: Summary) -> float:
    """Epsilon at which the account stands, everything open counted whole."""
    return float(summary["spent"]["epsilon"])


def parts(summary: Summary) -> dict[int, float]:
    """Entry -> its part of what is spent, in epsilon; the parts add up to ``spent``.

    Without ``shares``, what each entry added when it was admitted, scaled to the same sum.
    """
    shares = summary.get("shares")
    if shares is None:
        shares, before = {}, 0.0
        for entry in summary["entries"]:
            after = float(entry["epsilon_account_after"])
            shares[entry["entry"]] = max(0.0, after - before)
            before = after
        whole = sum(shares.values())
        shares = {number: share / whole for number, share in shares.items()} if whole else {}
    return {entry["entry"]: spent(summary) * shares.get(entry["entry"], 0.0) for entry in summary["entries"]}


def bars(summary: Summary) -> list[Bar]:
    """One bar a run, in order of time; tuning entries of one label are one sweep and one bar."""
    part = parts(summary)
    made: dict[Any, Bar] = {}
    for entry in summary["entries"]:
        is_sweep = entry["purpose"] == "trial" and bool(entry["label"])
        key = ("sweep", entry["label"]) if is_sweep else entry["entry"]
        name = str(entry["label"]) if is_sweep else str(entry["run_id"])
        fresh = {"name": name, "purpose": str(entry["purpose"]), "part": 0.0, "open": False, "entries": []}
        bar = made.setdefault(key, fresh)
        bar["part"] += part[entry["entry"]]
        bar["open"] = bar["open"] or entry["status"] in OPEN
        bar["entries"].append(entry["entry"])
    for bar in made.values():
        if len(bar["entries"]) > 1:
            bar["name"] += f" ({len(bar['entries'])} entries)"
    return list(made.values())


def by_purpose(summary: Summary) -> list[tuple[str, float, int]]:
    """(purpose, part of what is spent, entries), in a fixed order; purposes without an entry are left out."""
    part = parts(summary)
    found = list(dict.fromkeys([*PURPOSES, *(str(entry["purpose"]) for entry in summary["entries"])]))
    rows = []
    for purpose in found:
        entries = [entry for entry in summary["entries"] if entry["purpose"] == purpose]
        if entries:
            rows.append((purpose, sum(part[entry["entry"]] for entry in entries), len(entries)))
    return rows


def story(summary: Summary) -> str:
    """The account in one breath."""
    limit = summary["limit"]
    text = (
        f"ε = {epsilon_up(spent(summary))} of {epsilon_up(limit['epsilon'])} is spent (δ = {small(limit['delta'])}, "
        f"for one {summary['unit']}), in {_count(len(summary['entries']), 'entry', 'entries')}."
    )
    return f"{text} {forecast(summary)}"


def forecast(summary: Summary) -> str:
    """What still fits, in one sentence."""
    coming = summary.get("next")
    if summary["frozen"]:
        return "It is frozen: nothing more may be spent."
    if not coming:
        return "No charged run yet to forecast from."
    size = f"ε = {epsilon_up(coming['epsilon'])}"
    if coming["runs"] == 0:
        return f"Not one more run like the newest ({size}) fits."
    runs, fit = (f"{coming['runs']:,} more runs", "fit") if coming["runs"] > 1 else ("One more run", "fits")
    return f"{runs} like the newest ({coming['purpose']}, {size}) {fit}."


def banners(summary: Summary) -> list[str]:
    """What must not be overlooked."""
    said = []
    if summary["frozen"]:
        said.append(f"Frozen: {summary.get('frozen_reason') or 'no reason given'}")
    if spent(summary) > float(summary["limit"]["epsilon"]):
        said.append("More is spent than the limit now allows: the limit was lowered. Nothing new is admitted.")
    said += [f"The ledger contradicts itself: {problem}" for problem in summary.get("chain", {}).get("problems", [])]
    return said


def cards(summary: Summary, runs: list[KnownRun]) -> list[Card]:
    """How much is gone, how much is left, how many runs that is, and what came of it."""
    limit = float(summary["limit"]["epsilon"])
    share = f"{100 * spent(summary) / limit:.0f}\u00a0% of {epsilon_up(limit)}"
    remaining = max(0.0, limit - spent(summary))
    coming = summary.get("next")
    more = Card("More runs that fit", "-", "no charged run yet to go by")
    if coming:
        more = Card(
            "More runs that fit", f"{coming['runs']:,}", f"like the newest, ε = {epsilon_up(coming['epsilon'])}"
        )
    if summary["frozen"]:
        more = Card("More runs that fit", "0", "the account is frozen", "alarm")
    found = [run.brief for run in runs if run.brief is not None]
    attacked = sum(one["attack"] is not None for one in found)
    rejected = sum(bool(one["attack"] and one["attack"]["rejected"]) for one in found)
    note = f"{attacked} audited" + (f", {rejected} rejected" if rejected else "")
    if len(found) < len(runs):
        note += f"; {len(runs) - len(found):,} more runs without a folder here"
    return [
        Card("Spent ε", epsilon_up(spent(summary)), share, "private"),
        Card("Remaining ε", down(remaining), "what the filter still admits"),
        more,
        Card("Models trained on it", f"{len(found):,}", note, "alarm" if rejected else "plain"),
    ]


def down(value: float) -> str:
    """What is left, with three decimals, rounded down: never more than there is."""
    return f"{int(value * 1000) / 1000:.3f}".rstrip("0").rstrip(".")


def numbers(summary: Summary) -> list[tuple[str, str, str]]:
    """(name, value, what it proves) of each number of the account."""
    names = {
        "spent": "Enforced (filter)",
        "settled": "Can no longer be returned",
        "planned_pld": "Planned together (PLD)",
        "odometer": "Odometer (PLD)",
    }
    rows = []
    for key, label in names.items():
        block = summary.get(key)
        if isinstance(block, dict):
            value = epsilon_up(block.get("epsilon")) if is_number(block.get("epsilon")) else "unknown"
            rows.append((label, value, str(block.get("proves") or "")))
    return rows


def models(summary: Summary, runs: list[KnownRun]) -> list[dict[str, str]]:
    """One row a run whose folder was found, newest first: purpose, score, claim, part, audit, and its sentence."""
    part = parts(summary)
    rows = []
    for run in reversed(runs):
        if run.brief is None:
            continue
        entries = [entry for entry in summary["entries"] if str(entry["run_id"]) == run.run_id]
        rows.append(
            {
                "run": run.run_id,
                "when": str(entries[0]["created"])[:16].replace("T", " "),
                "purpose": ", ".join(dict.fromkeys(str(entry["purpose"]) for entry in entries)),
                "score": _score(run.brief),
                "epsilon": _claimed(run.brief),
                "part": epsilon_up(sum(part[entry["entry"]] for entry in entries)),
                "audit": _audit(run.brief),
                "sentence": str(run.brief["sentence"] or "No statement was made."),
            }
        )
    return rows


def without_folder(summary: Summary, runs: list[KnownRun]) -> list[str]:
    """Runs that the account names and whose folder was not found, each with the reason, newest first."""
    still_open = {str(entry["run_id"]) for entry in summary["entries"] if entry["status"] in OPEN and entry["event"]}
    said = []
    for run in reversed(runs):
        if run.brief is None:
            said.append(f"{run.run_id}: {'still open' if run.run_id in still_open else run.why}")
    return said


def entry_rows(summary: Summary) -> list[list[str]]:
    """Every entry of the ledger, newest first: number, time, run, purpose, status, steps, own price, account after."""
    rows = []
    for entry in reversed(summary["entries"]):
        done = entry["committed_steps"] if entry["steps_done"] is None else entry["steps_done"]
        label = f" ({entry['label']})" if entry["label"] else ""
        rows.append(
            [
                str(entry["entry"]),
                str(entry["created"])[:16].replace("T", " "),
                str(entry["run_id"]),
                f"{entry['purpose']}{label}",
                STATUS.get(entry["status"], str(entry["status"])),
                f"{plain(done)} of {plain(entry['planned_steps'])}",
                f"{epsilon_up(entry['epsilon'])} at {small(entry['delta'])}",
                epsilon_up(entry["epsilon_account_after"]),
            ]
        )
    return rows


def audit_rows(summary: Summary) -> list[list[str]]:
    """Every audit that the ledger was told of, newest first: row, time, run, look at this checkpoint, key, attacks."""
    return [
        [
            str(note["row"]),
            str(note["created"])[:16].replace("T", " "),
            str(note["run_id"]),
            plain(note["look"]),
            str(note["by"])[:16],
            ", ".join(str(name) for name in note["attacks"]),
        ]
        for note in reversed(summary.get("audits") or [])
    ]


def chain(summary: Summary) -> list[Row]:
    """The ledger behind the page: its chain, who signed, whether an old copy was put back."""
    found, head = summary.get("chain") or {}, summary.get("head") or {}
    rows = [("Ledger", str(head.get("ledger_id") or MISSING))]
    if found:
        text = f"{plain(found.get('rows'))} rows, chain and signature " + (
            "hold" if found.get("holds") else "DO NOT hold"
        )
        rows.append(("Chain", f"{text}; prices and admissions recomputed"))
        back = str(found.get("rollback"))
        unknown = "unknown: no head kept elsewhere is at hand"
        rows.append(("Put back to an old copy", unknown if back == "unknown" else back))
    rows.append(("Newest row", f"{plain(head.get('sequence'))}, hash {str(head.get('hash'))[:16]}"))
    rows.append(("Signed by", str(head.get("key_id") or MISSING)))
    return rows + [("Mind", str(note)) for note in found.get("notes") or []]


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _claimed(known: dict[str, Any]) -> str:
    return f"{epsilon_up(known['epsilon'])} at {small(known['delta'])}" if known["private"] else "no promise"


def _score(known: dict[str, Any]) -> str:
    metric = known["metric"]
    return score(metric["name"], metric["value"]) if metric else "-"


def _audit(known: dict[str, Any]) -> str:
    attack = known["attack"]
    if attack is None:
        return "not audited"
    found = f"AUC {attack['auc']['value']:.3f} by {str(attack['name']).replace('_', ' ')}"
    return f"claim rejected; {found}" if attack["rejected"] else f"no contradiction; {found}"
