"""What an audit says about the claimed epsilon, what canaries add, and what a run found of itself, for a report."""

from __future__ import annotations

from typing import Any

from dptrain.report.phrases import MISSING, duration, epsilon_up, is_number, plain, rate, small
from dptrain.report.record import RunRecord

Row = tuple[str, str]


def epsilon_rows(record: RunRecord) -> list[Row]:
    """The claim, what was shown of it, what could have been shown; and what the audit took."""
    audit = record.audit
    if not audit:
        return []
    delta, tests = small(audit.get("delta") or 1e-5), plain(audit.get("tests"))
    sure = f"{rate(audit.get('confidence', 0.95))} confidence over {tests} tests"
    rows = []
    if is_number(audit.get("epsilon_claimed")):
        rows.append(("ε claimed", f"{epsilon_up(audit['epsilon_claimed'])} at δ = {delta}"))
    if is_number(audit.get("epsilon_low")):
        shown = f"at least {plain(audit['epsilon_low'], 3)} at δ = {delta} ({sure})"
        rows.append(("ε shown by members", shown))
        rows.append(("Most that could be shown", f"{plain(audit.get('epsilon_ceiling'), 3)}, by samples of this size"))
    ledger = _table(audit.get("ledger"))
    looks = f"; look {plain(ledger.get('look'))} at this checkpoint" if ledger.get("noted") is True else ""
    rows.append(("Seed, time of scoring", f"{plain(audit.get('seed'))}, {duration(audit.get('seconds'))}{looks}"))
    return rows


def canaries(record: RunRecord) -> tuple[str, list[Row]]:
    """The claim check's sentence, and a row for each bound and test with what it assumes; empty without canaries."""
    checked = _table(record.audit.get("claim_check"))
    if not checked.get("canaries"):
        return "", []
    rows = []
    for name, title in (("test", "The claim, p-value (decides)"), ("independent_test", "The claim, p-value")):
        test = _table(checked.get(name))
        if is_number(test.get("p_value")):
            level = f", level {small(checked.get('level'))}" if name == "test" else ""
            rows.append((title, f"{test['p_value']:.2g}{level}; {test.get('assumption')}"))
    for bound in checked.get("bounds") or []:
        if isinstance(bound, dict):
            name = str(bound.get("name")).replace("_", " ")
            shown = f"{plain(bound.get('epsilon'), 3)} at δ = {small(bound.get('delta'))}"
            sure = f"{rate(bound.get('confidence'))} confidence"
            rows.append((f"ε at least, {name}", f"{shown}, {sure}; {bound.get('assumption')}"))
    return str(checked.get("sentence") or ""), rows


def selfcheck(record: RunRecord) -> list[Row]:
    """What the statement says that the run found of its own noise, clipping and sampling."""
    found = record.get("statement.selfcheck")
    if not record.private or not isinstance(found, dict):
        return []
    if found.get("state") == "off":
        return [("Self-check", "off: the run did not test its own noise, clipping and sampling")]
    if found.get("state") != "passed":
        return [("Self-check", str(found.get("state") or MISSING))]
    if found.get("noise_ratio") is None:
        return [("Self-check", "no fault found")]
    ends = found.get("noise_interval")
    ends = ends if isinstance(ends, list) and len(ends) == 2 else [MISSING, MISSING]
    looks = f"{plain(found.get('steps'))} steps, {plain(found.get('looks'))} looks"
    noise = f"noise {found['noise_ratio']} of the planned deviation [{ends[0]}, {ends[1]}]"
    again = f"units recomputed on {plain(found.get('recomputed_steps'))} steps"
    return [("Self-check", f"no fault found in {looks}: {noise}; {again}")]


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
