"""A comparison in words: the columns that a terminal and a page show, from the same plain data."""

from __future__ import annotations

import math
from typing import Any

from dptrain.report.brief import Brief
from dptrain.report.compare import Comparison
from dptrain.report.facts import STATUS
from dptrain.report.pareto import metric_label, score
from dptrain.report.phrases import MISSING, duration, epsilon_up, is_number, plain, small

ADJACENCY = {"zero_out": "zero-out", "add_remove": "add or remove one"}
NOTHING = "-"


def panel_title(panel: dict[str, Any]) -> str:
    """What the runs of a panel share."""
    cap = panel["max_rows_per_unit"]
    unit = f"{panel['unit']} with at most {plain(cap)} rows" if is_number(cap) and cap != 1 else str(panel["unit"])
    size = f", {plain(panel['public_size'])} {panel['unit']}s" if is_number(panel["public_size"]) else ""
    return f"{panel['data']}{size}: protects one {unit}, {ADJACENCY.get(panel['adjacency'], panel['adjacency'])}"


def panel_runs(shown: Comparison, panel: dict[str, Any]) -> list[Brief]:
    """The runs of a panel, baselines last, most private first."""
    epsilons = {p["number"]: p["epsilon"] for p in panel["points"]}
    order = [*epsilons, *(e["number"] for e in panel["not_drawn"]), *(b["number"] for b in panel["baselines"])]
    order.sort(key=lambda number: epsilons.get(number, float("inf")))
    return [shown["runs"][number - 1] for number in order]


def other_runs(shown: Comparison) -> list[Brief]:
    """Runs that stand in no panel: no promise and no private run to stand beside, or no score."""
    kinds = ("points", "baselines", "not_drawn")
    inside = {entry["number"] for panel in shown["panels"] for kind in kinds for entry in panel[kind]}
    return [run for run in shown["runs"] if run["number"] not in inside]


def columns(shown: Comparison, panel: dict[str, Any] | None, runs: list[Brief]) -> tuple[list[str], list[list[str]]]:
    """Headings and one row of words a run; columns that no run has anything for are left out.

    The first two columns are the run's number and its name. A star after the number: nothing beats it.
    """
    points = {p["number"]: p for p in panel["points"]} if panel else {}
    named = metric_label(panel["metric"]) if panel else "Score"
    at = f"ε at δ = {small(panel['delta'])}" if panel else "ε (δ)"
    inside = " (internal)" if shown["tier"] == "internal" else ""
    table: dict[str, list[str]] = {
        "#": [f"{run['number']}{'*' if points.get(run['number'], {}).get('on_front') else ''}" for run in runs],
        "Run": [run["run_id"] for run in runs],
        "Model": [run["model"] or NOTHING for run in runs],
        at: [_epsilon(run, points.get(run["number"])) for run in runs],
        "as stated": [_stated(run, points.get(run["number"])) for run in runs],
        named: [_score(run, panel) for run in runs],
        "Account": [_spend(run) for run in runs],
        f"Time{inside}": [_or(duration(run["cost"]["seconds"])) for run in runs],
        "Device": [run["cost"]["device"] or NOTHING for run in runs],
        "to plain": [_ratio(run) for run in runs],
        "Steps": [_or(plain(run["cost"]["steps"])) for run in runs],
        f"Attack AUC{inside}": [_attack(run) for run in runs],
        "Status": [_status(run) for run in runs],
    }
    kept = [name for name, cells in table.items() if name in ("#", "Run", at) or any(c != NOTHING for c in cells)]
    return kept, [[table[name][index] for name in kept] for index in range(len(runs))]


def _or(text: str) -> str:
    return NOTHING if text == MISSING else text


def _epsilon(run: Brief, point: dict[str, Any] | None) -> str:
    if not run["private"]:
        return "no promise"
    if point is not None:
        return epsilon_up(point["epsilon"]) if point["exact"] else f"at most {epsilon_up(point['epsilon'])}"
    return f"{epsilon_up(run['epsilon'])} (δ = {small(run['delta'])})"


def _stated(run: Brief, point: dict[str, Any] | None) -> str:
    """The statement's own pair, where another is shown."""
    if point is None or (point["exact"] and point["epsilon"] == run["epsilon"]):
        return NOTHING
    return f"{epsilon_up(run['epsilon'])} at {small(run['delta'])}"


def _score(run: Brief, panel: dict[str, Any] | None) -> str:
    metric = run["metric"]
    if metric is None:
        return NOTHING
    shown = score(metric["name"], metric["value"])
    return shown if panel else f"{shown} {metric_label(metric['name']).lower()} on {run['data']}"


def _spend(run: Brief) -> str:
    spend = run["spend"]
    if spend is None:
        return NOTHING
    of = f" of {epsilon_up(spend['limit_epsilon'])}" if spend["limit_epsilon"] is not None else ""
    total = spend["total"]
    return f"{math.ceil(total * 1000) / 1000:.3f}{of}" if is_number(total) else NOTHING


def _status(run: Brief) -> str:
    status = str(run["status"] or "finished")
    return NOTHING if status == "finished" else STATUS.get(status, status)


def _ratio(run: Brief) -> str:
    ratio = run["cost"]["ratio_to_plain"]
    return f"{ratio:.2f} x" if ratio is not None else NOTHING


def _attack(run: Brief) -> str:
    if run["attack"] is None:
        return NOTHING
    found = f"{run['attack']['auc']['value']:.3f}"
    return f"{found}, claim rejected" if run["attack"]["rejected"] else found
