"""Runs side by side: which of them share an axis, at which δ, and which nothing beats.

Runs share an axis of ε when they protect the same unit under the same adjacency, and one of accuracy when data and
metric are the same. Each ε is read at one δ: a statement that holds at a smaller δ holds at a larger one, so its ε
there is at most that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from dptrain.report.brief import Brief

SCHEMA = "dptrain.compare/1"
Comparison = dict[str, Any]


def comparison(briefs: Sequence[Brief], tier: str, left_out: Sequence[tuple[str, str]] = ()) -> Comparison:
    """Everything a table, a page or another program shows of these runs, as plain data.

    Args:
        briefs: of ``report.brief.brief``; numbered by stated epsilon, those without a promise last.
        tier: of the records they were made from.
        left_out: (folder, why) of what a glob or a folder caught beside them.

    Returns:
        ``runs`` (each brief with its ``number``), ``panels`` (an axis each: shared facts, δ, points, baselines, what
        could not be drawn), ``left_out`` and ``notes``.
    """
    ordered = sorted(briefs, key=lambda one: (one["epsilon"] is None, one["epsilon"] or 0.0))
    runs = [{"number": number, **one} for number, one in enumerate(ordered, 1)]
    panels = [_panel(group, runs) for group in _groups(runs)]
    return {
        "schema": SCHEMA,
        "tier": tier,
        "runs": runs,
        "panels": panels,
        "left_out": [{"folder": folder, "why": why} for folder, why in left_out],
        "notes": _notes(runs, panels),
    }


def epsilon_at_shared(run: Brief, delta: float) -> tuple[float, bool] | None:
    """(ε, whether it is exactly the statement's) of a run at ``delta``; None where the statement says nothing of it.

    Guarantee: the run is (ε, delta)-DP if its statement holds: (ε', δ')-DP with δ' <= delta implies it.
    """
    pairs = [(entry["delta"], entry["epsilon"]) for entry in run["epsilon_at"]]
    if run["epsilon"] is not None and run["delta"] is not None:
        pairs.append((run["delta"], run["epsilon"]))
    below = [(epsilon, found) for found, epsilon in pairs if found <= delta * (1 + 1e-9)]
    if not below:
        return None
    epsilon, found = min(below)
    return epsilon, abs(found - delta) <= 1e-9 * delta


def front(points: Sequence[tuple[float, float]], better: str) -> list[bool]:
    """Which (ε, score) pairs no other pair beats: none has less or equal ε and a score as good, one of them better.

    >>> front([(1.0, 0.8), (2.0, 0.7), (2.0, 0.9), (1.0, 0.8)], "higher")
    [True, False, True, True]
    """
    sign = 1.0 if better == "higher" else -1.0
    scored = [(epsilon, sign * value) for epsilon, value in points]
    return [not any(e <= x and v >= y and (e, v) != (x, y) for e, v in scored) for x, y in scored]


def _key(run: Brief) -> tuple[Any, ...]:
    metric = run["metric"]["name"] if run["metric"] else None
    return (run["data"], run["public_size"], metric, run["unit"], run["max_rows_per_unit"], run["adjacency"])


def _groups(runs: list[Brief]) -> list[list[Brief]]:
    """Private runs that may share both axes; runs without a promise or a score belong to none."""
    groups: dict[tuple[Any, ...], list[Brief]] = {}
    for run in runs:
        if run["private"] and run["metric"] and run["epsilon"] is not None:
            groups.setdefault(_key(run), []).append(run)
    return list(groups.values())


def _shared_delta(group: list[Brief]) -> float:
    """The δ at which most runs have a number of their own; the smallest of those."""
    counted = Counter(delta for run in group for delta in {run["delta"], *(e["delta"] for e in run["epsilon_at"])})
    own = {run["delta"] for run in group}
    usable = {delta: count for delta, count in counted.items() if delta in own}
    most = max(usable.values())
    return min(delta for delta, count in usable.items() if count == most)


def _panel(group: list[Brief], runs: list[Brief]) -> dict[str, Any]:
    data, size, metric, unit, max_rows, adjacency = _key(group[0])
    delta = _shared_delta(group)
    points, not_drawn = [], []
    for run in group:
        found = epsilon_at_shared(run, delta)
        if found is None:
            why = f"its statement names no epsilon at delta {delta:g} or below"
            not_drawn.append({"number": run["number"], "run_id": run["run_id"], "why": why})
            continue
        one = {"number": run["number"], "run_id": run["run_id"], "epsilon": found[0], "exact": found[1]}
        points.append(one | {"value": run["metric"]["value"]})
    better = group[0]["metric"]["better"]
    for point, best in zip(points, front([(p["epsilon"], p["value"]) for p in points], better), strict=True):
        point["on_front"] = best
    baselines = [
        {"number": run["number"], "run_id": run["run_id"], "value": run["metric"]["value"]}
        for run in runs
        if not run["private"] and run["metric"] and _key(run)[:3] == (data, size, metric)
    ]
    shared = {
        "data": data,
        "public_size": size,
        "metric": metric,
        "better": better,
        "unit": unit,
        "max_rows_per_unit": max_rows,
    }
    drawn = {"points": points, "baselines": baselines, "not_drawn": not_drawn}
    return {**shared, "adjacency": adjacency, "delta": delta, **drawn}


def _notes(runs: list[Brief], panels: list[dict[str, Any]]) -> list[str]:
    """What a reader must know before comparing."""
    notes = []
    if len(panels) > 1:
        notes.append(
            "These runs differ in data, metric, protected unit or adjacency: an epsilon of one kind does not measure "
            "the other, so each kind has axes of its own."
        )
    for panel in panels:
        moved = [p for p in panel["points"] if _delta_of(runs, p["number"]) != panel["delta"]]
        if moved:
            named = ", ".join(f"{p['number']}" + ("" if p["exact"] else " (at most)") for p in moved)
            notes.append(
                f"Epsilon is shown at delta {panel['delta']:g}. Stated at another delta and read at this one: "
                f"run {named}."
            )
        notes += [f"Run {entry['number']} is not drawn: {entry['why']}." for entry in panel["not_drawn"]]
    private = [run for run in runs if run["private"]]
    if len(private) > 1:
        without = [str(run["number"]) for run in private if run["spend"] is None]
        text = "Each epsilon is that of one run. Runs on the same people add up, whichever of them is kept."
        if without:
            text += f" Counted in no account: run {', '.join(without)}."
        notes.append(text)
    if any(not run["private"] for run in runs):
        notes.append("Runs without a privacy promise may reveal any row they were trained on.")
    tuned = [str(run["number"]) for run in private if run["tuning"] and not run["tuning"]["public_only"]]
    if tuned:
        notes.append(f"The epsilon of run {', '.join(tuned)} includes the search for its settings.")
    published = sorted({name for run in runs for name in run["metrics_from_private_rows"]})
    if published:
        notes.append(f"Computed from private rows and published outside any promise: {', '.join(published)}.")
    return notes


def _delta_of(runs: list[Brief], number: int) -> float | None:
    return runs[number - 1]["delta"]
