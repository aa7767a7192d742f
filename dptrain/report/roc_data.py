"""An attack's ROC as the figures read it."""

from __future__ import annotations

from typing import Any

from dptrain.report.phrases import is_number, printable


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
