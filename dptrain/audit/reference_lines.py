"""What the reference tier found, as lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHOWN_GROUPS = 3


def reference_lines(found: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Label and text; none without references."""
    if found is None:
        return []
    text = (
        f"{found['count']} ({found['new']} new), {found['seconds']:g} s, {found['cpu_seconds']:g} CPU s; {found['way']}"
    )
    lines = [("references", text)]
    if found.get("diverged"):
        lines.append(("", f"{found['diverged']} of them diverged (weights are not finite) and tell nothing apart"))
    if not found["between_models"]:
        few = found["count"] <= 2
        why = "one pair of references says nothing of it" if few else "references hold too few rows for these rates"
        lines.append(
            ("between models", f"no interval: {why}; a longer audit.budget goes on" if few else f"none: {why}")
        )
    for name, rates in found["between_models"].items():
        first = rates[0]
        share = f"{first['tpr']:.2%} ({first['low']:.2%} to {first['high']:.2%})"
        label = f"mean over {first['targets']} models at {100 * first['fpr']:g} % false alarms: {share}"
        lines.append((name.replace("_", " "), label))
    groups = found["exposed"].get("groups", [])[:SHOWN_GROUPS]
    if groups:
        shown = "; ".join(
            f"{g['by']} {g['group']}: {g['found']:.2%} ({g['low']:.2%} to {g['high']:.2%})" for g in groups
        )
        together = f"all {found['exposed']['together']} intervals hold together"
        lines.append(("most exposed", f"{shown}; {together}"))
    return lines
