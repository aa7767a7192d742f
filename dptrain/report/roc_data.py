"""Attacks' ROC curves as the figures read them."""

from __future__ import annotations

from typing import Any

from dptrain.report.phrases import is_number, printable
from dptrain.report.record import RunRecord

MOST_DRAWN = 5
"""Curves that a figure can tell apart;"""
LEFT_OUT = ("logit_difference", "lira_offline")
"""attacks that are not drawn where there are more. The table has them all."""


def curves_of(record: RunRecord) -> list[tuple[str, list[float], list[float]]]:
    """(name, false-positive rates, true-positive rates) of every attack that is drawn; none for a public record."""
    attacks = [attack for attack in record.audit.get("attacks") or [] if isinstance(attack, dict)]
    curves = [(str(attack.get("name")), *curve_of(attack)) for attack in attacks]
    curves = [curve for curve in curves if len(curve[1]) > 1]
    return [curve for curve in curves if len(curves) <= MOST_DRAWN or curve[0] not in LEFT_OUT]


def curve_of(attack: dict[str, Any]) -> tuple[list[float], list[float]]:
    """(false-positive rates, true-positive rates) of an attack in audit.json; whatever is no number is left out."""
    roc = attack.get("roc")
    roc = roc if isinstance(roc, dict) else {}
    pairs = zip(roc.get("fpr") or [], roc.get("tpr") or [], strict=False)
    kept = [(float(x), float(y)) for x, y in pairs if is_number(x) and is_number(y)]
    return [x for x, _ in kept], [y for _, y in kept]


def legend_name(name: str) -> str:
    """A name as a legend shows it: short, never read as a formula, never hidden."""
    return printable(name)[:40].replace("$", r"\$").replace("_", " ").strip() or "attack"
