"""The benchmark's findings for a reader on a terminal."""

from __future__ import annotations

from typing import Any

from dptrain.training.bench_costs import ledger_ms
from dptrain.training.bench_engine import FEWEST, NOISY, SMALLEST
from dptrain.training.estimate import engine_text
from dptrain.training.memory import MIB

MOST_LINES = 40
"""Parameters that are listed one by one."""


def bench_text(found: dict[str, Any]) -> str:
    """The tables; see ``bench`` for what is in ``found``."""
    shape = "x".join(str(n) for n in found["row"])
    units = f" of {found['rows_per_unit']} rows a unit" if found["rows_per_unit"] > 1 else ""
    lines = [
        f"bench of {found['model']} ({found['parameters']:,} parameters) on {found['data']}",
        f"  {found['rows']} made-up rows of shape {shape}{units}, {found['dtype']}, {found['device']}",
        "  no private row was read and nothing was spent: benchmarking is free",
        "",
        f"  {'engine':<14}{'DP / plain':<22}{'ms a step':>10}{'plain':>9}  {'peak memory / plain'}",
    ]
    lines += [_engine(name, one, found["plain"]) for name, one in found["engines"].items()]
    lines.append("  DP step: clipped sum, fast noise, optimizer, by turns with plain; 95 % interval, ~ wider than 10 %")
    lines.append(f"  ms: {found['clock']}; memory: most held above the built model")
    lines += _picks(found["bookkeeping"])
    if found["largest_batch"] is not None:
        lines += ["", f"  largest physical batch of {found['chosen']}", *_largest(found["largest_batch"])]
    return "\n".join([*lines, "", *_costs(found), "", f"  took {found['seconds']:.0f} s"])


def _engine(name: str, one: dict[str, Any], plain: dict[str, Any]) -> str:
    if "refused" in one:
        return f"  {name:<14}{one['refused']}"
    wide = "~" if one["pairs"] < FEWEST or one["high"] - one["low"] > NOISY * one["ratio"] else ""
    ratio = f"{wide}{one['ratio']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"
    base, top = plain["peak_mib"], one["peak_mib"]
    if base is None or top is None:
        memory = "not known on this system"
    elif base * MIB >= SMALLEST:
        memory = f"{top / base:.2f} ({top:,.0f} MiB)"
    else:
        memory = f"{top:,.0f} MiB (plain {base:,.1f})"
    return f"  {name:<14}{ratio:<22}{one['ms']:>10.2f}{one['plain_ms']:>9.2f}  {memory}"


def _picks(details: dict[str, Any]) -> list[str]:
    if not details:
        return []
    lines = ["", "  bookkeeping, as picked for each parameter"]
    for one in details["ways"][:MOST_LINES]:
        lines.append(f"    {one['parameter']:<40} {'x'.join(map(str, one['shape'])):<16} {one['way']}")
    if len(details["ways"]) > MOST_LINES:
        lines.append(f"    and {len(details['ways']) - MOST_LINES} more: format=json lists all")
    return [*lines, "  " + engine_text("bookkeeping", details["without_rule"])]


def _largest(largest: dict[str, Any]) -> list[str]:
    peaks = [(one["rows"], one["peak_mib"]) for one in largest["tried"]]
    lines = [f"    {rows:>9,} rows  " + ("no memory" if top is None else f"{top:,.0f} MiB") for rows, top in peaks]
    limit = f"{largest['limit_mib']:,.0f} MiB"
    why = {
        "memory": f"twice as many would not fit {limit}",
        "time": f"bench.seconds ended the search; about {largest['straight_line'] or 0:,} would fill {limit}",
        "data": "no draw can be larger",
    }
    rows = largest["rows"]
    said = "none was found that fits " + limit if rows is None else f"{rows:,} rows fit; {why[largest['stopped_by']]}"
    return [*lines, f"    {said}"]


def _costs(found: dict[str, Any]) -> list[str]:
    costs = found["costs"]
    if "refused" in costs:
        return [f"  beside the gradient: not measured ({costs['refused']})"]
    chosen = found["engines"][found["chosen"]]
    step = chosen.get("ms", float("inf"))  # unknown: a commit a step is the most that it can be
    mark = {"fast": "", "secure": ""} | {found["noise"]: "   <- this run's"}
    return [
        "  beside the gradient, ms a step",
        f"    noise, fast      {costs['noise_fast_ms']:9.3f}{mark['fast']}",
        f"    noise, secure    {costs['noise_secure_ms']:9.3f}{mark['secure']}",
        f"    accounting       {costs['planning_ms']:9.3f}   plan, checks and odometer, over {found['steps']:,} steps",
        f"    ledger           {ledger_ms(costs['commit_ms'], step):9.3f}   "
        f"a commit takes {costs['commit_ms']:.1f} ms, and leases keep commits under 5 % of the time",
        f"    logging          {costs['logging_ms']:9.3f}   metrics.jsonl; a tracker has a thread of its own",
    ]
