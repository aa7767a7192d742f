"""Which groups of members an attack finds most, with counts and exact intervals; small groups are not shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptrain.audit.groups import Grouping
from dptrain.audit.intervals import proportion_high, proportion_low
from dptrain.audit.roc import allowed_count, needed_for

Floats = NDArray[np.float64]

SMALLEST_GROUP = 20
"""Members that a group must have to be shown."""


def exposed_groups(
    members: Floats, groupings: Sequence[Grouping], non_members: Floats, fpr: float, confidence: float
) -> dict[str, Any]:
    """The share of each group's members above one threshold for all: that of the rate on all non-members.

    Guarantee: given the threshold, and members' scores independent of each other, all intervals together cover with
    probability at least ``confidence``: each is Clopper-Pearson's at an error of (1 - confidence) / G, G the number of
    groups shown (Bonferroni). Which groups are shown depends on their sizes, and on no score.

    Args:
        members: (n,) scores.
        groupings: ways to sort these members.
        non_members: (m,) scores.
        fpr: rate at which the threshold lies.
        confidence: of all intervals together.

    Returns:
        "fpr", "groups" (by, group, members, found, low, high; most surely exposed first), "together" (G),
        "confidence", "suppressed" (how many groups were too small). "refused" in place of groups where the sample
        cannot support the rate.
    """
    if len(non_members) < needed_for(fpr):
        return {"fpr": fpr, "refused": f"needs at least {needed_for(fpr)} non-members; {len(non_members)} given"}
    rank = allowed_count(fpr, len(non_members))
    threshold = np.sort(non_members)[::-1][rank] if rank < len(non_members) else -np.inf
    shown, suppressed = [], 0
    for grouping in groupings:
        for group in np.unique(grouping.group):
            inside = members[grouping.group == group]
            if len(inside) < SMALLEST_GROUP:
                suppressed += 1
                continue
            name = grouping.names[group] if group < len(grouping.names) else str(group)
            shown.append((grouping.by, name, len(inside), int((inside > threshold).sum())))
    side = (1 - confidence) / (2 * max(1, len(shown)))
    groups = [
        {
            "by": by,
            "group": name,
            "members": count,
            "found": found / count,
            "low": proportion_low(found, count, side),
            "high": proportion_high(found, count, side),
        }
        for by, name, count, found in shown
    ]
    groups.sort(key=lambda entry: (-entry["low"], -entry["found"]))
    facts = {"fpr": fpr, "together": len(groups), "confidence": confidence}
    return facts | {"groups": groups, "suppressed": suppressed}
