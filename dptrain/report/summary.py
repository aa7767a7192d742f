"""The six lines that end a quickstart: how good, how private, how attackable, and where everything lies."""

from __future__ import annotations

from typing import Any

from dptrain.report.phrases import epsilon_up, plain
from dptrain.report.record import RunRecord, read_record
from dptrain.run_folder import RunFolder


def six_lines(folder: RunFolder, tier: str) -> list[tuple[str, str]]:
    """Label and value of each line; what an attack found is said in the internal tier only."""
    record = read_record(folder, tier)
    return [
        ("public split", _metrics(record)),
        ("privacy", _promise(record)),
        ("attack", _attack(record, folder)),
        ("checkpoint", str(folder.checkpoint)),
        ("report", str(folder.report if tier == "internal" else folder.public_report)),
        ("watch", record.get("result.open_command") or "tracking is off"),
    ]


def _metrics(record: RunRecord) -> str:
    metrics: dict[str, Any] = record.get("result.metrics") or {}
    shown = [f"{name.removeprefix('test_').replace('_', ' ')} {plain(value)}" for name, value in metrics.items()]
    return ", ".join(sorted(shown, key=lambda text: not text.startswith(("accuracy", "mae")))) or "no metric"


def _promise(record: RunRecord) -> str:
    epsilon, delta = record.get("result.epsilon"), record.get("result.delta")
    if epsilon is None:
        return "none is promised"
    return f"epsilon {epsilon_up(epsilon)} at delta {delta:g} for one {record.get('statement.unit.kind')}"


def _attack(record: RunRecord, folder: RunFolder) -> str:
    if record.tier == "public" and folder.internal_audit.is_file():
        return "what an attack found is internal: leave tier=public out to see it"
    attacks = record.get("audit.attacks")
    if not attacks:
        return f"not attacked yet: dptrain audit run={folder.path}"
    known = [attack for attack in attacks if attack["auc"].get("value") is not None]
    if not known:
        return "no attack gave a number"
    best = max(known, key=lambda attack: attack["auc"]["value"])
    auc = best["auc"]
    ends = best.get("auc_together") or auc
    words = f"AUC {auc['value']:.3f} ({ends['low']:.3f} to {ends['high']:.3f}) by {best['name'].replace('_', ' ')}"
    words += f", the highest of {len(known)}; " if len(known) > 1 else "; "
    references = record.get("audit.references.count")
    return words + "0.5 is guessing" + _found(best) + (f"; {references} references" if references else "")


def _found(attack: dict[str, Any]) -> str:
    """The share of members that it finds at the first rate that the sample supports."""
    for entry in attack.get("tpr") or []:
        if not entry.get("refused"):
            share = f"{entry['tpr']:.2%} ({entry['low']:.2%} to {entry['high']:.2%})"
            return f"; finds {share} of members at {100 * entry['fpr']:g} % false alarms"
    return ""
