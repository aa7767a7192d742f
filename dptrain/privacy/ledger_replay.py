"""The second reading of a ledger: every row's meaning checked anew, as if it had been offered today.

A chain that holds shows that rows are what was signed. Whether what was signed was allowed is another question: here
prices are computed again from the events, and every admission, commit and settlement is weighed again.
"""

from __future__ import annotations

from typing import Any

from dptrain.errors import ConfigError
from dptrain.privacy.ledger_state import State
from dptrain.privacy.privacy_filter import fits, rules_from, step_price, steps_of

AUDIT_FIELDS = frozenset(
    ["kind", "account", "run_id", "purpose", "bundle", "attacks", "time", "by", "sequence", "previous"]
)
"""All that the row of an audit holds."""


def faults_of_meaning(rows: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """(problems, notes) of rows whose chain holds, each naming its row. A problem ends the reading of what follows."""
    state = State()
    problems: list[str] = []
    notes: list[str] = []
    time = ""
    for row in rows:
        sequence = row["sequence"]
        try:
            found = _fault(state, row)
            if found is not None:
                problems.append(f"row {sequence}: {found}")
            if row["time"] < time:
                notes.append(f"row {sequence}: is dated before the one before it (a clock was set back)")
            time = row["time"]
            state.apply(row, "")
        except (KeyError, TypeError, ValueError) as error:
            problems.append(f"row {sequence}: cannot be read ({type(error).__name__}: {error})")
            break
    return problems, notes


def _fault(state: State, row: dict[str, Any]) -> str | None:
    """What is wrong with a row that is offered to ``state``; None where it is in order."""
    match row["kind"]:
        case "account":
            shares = sum(rule.delta for rule in rules_from(row["rules"]))
            return "its rules' shares add up to more than its delta" if shares > row["delta"] else None
        case "reserve":
            return _reserve_fault(state, row)
        case "commit" | "settle" | "abandon":
            return _step_fault(state, row)
        case "reopen":
            return _reopen_fault(state, row)
        case "audit":
            return _audit_fault(state, row)
    return None


def _reserve_fault(state: State, row: dict[str, Any]) -> str | None:
    account = state.accounts[row["account"]]
    if account.frozen is not None:
        return "was admitted to a frozen account"
    if row["event"] is None:
        return None if row["purpose"] == "debug" and not any(row["prices"]) else "has no event"
    try:
        planned, step = steps_of(row["event"])
        prices = step_price(step, [rule.order for rule in account.rules])
    except ConfigError as error:
        return str(error)
    if planned != row["planned_steps"]:
        return f"names {row['planned_steps']} steps where its event has {planned}"
    # Another version of dp-accounting may round otherwise; what matters is that nothing was priced too low.
    if any(written < price * (1 - 1e-6) - 1 for written, price in zip(row["prices"], prices, strict=True)):
        return "is priced below what its event costs"
    if not fits(account.rules, account.with_more(tuple(row["prices"]), planned), account.epsilon):
        return f"was admitted above the limit {account.epsilon:g} of '{account.name}'"
    return None


def _step_fault(state: State, row: dict[str, Any]) -> str | None:
    entry = state.entries[row["entry"]]
    if not entry.is_open:
        return f"entry {entry.entry} was {entry.status} already"
    if row["kind"] == "abandon":
        return None if row["steps"] == entry.committed_steps else "is charged for other steps than were committed"
    if row["attempt"] != entry.attempt:
        return f"was written by attempt {row['attempt']} after attempt {entry.attempt} had taken over"
    if row["kind"] == "commit":
        rises = entry.committed_steps < row["steps"] <= entry.planned_steps
        return None if rises else "commits steps that do not rise or were not planned"
    return None if 0 <= row["steps"] <= entry.committed_steps else "is charged for steps that were never committed"


def _reopen_fault(state: State, row: dict[str, Any]) -> str | None:
    entry = state.entries[row["entry"]]
    account = state.accounts[entry.account]
    if entry.is_open:
        return f"opens entry {entry.entry} again, which is open"
    if account.frozen is not None:
        return "was admitted to a frozen account"
    if row["attempt"] != entry.attempt + 1:
        return f"is attempt {row['attempt']} after attempt {entry.attempt}"
    if not fits(
        account.rules, account.with_more(entry.prices, entry.planned_steps - entry.charged_steps), account.epsilon
    ):
        return f"was admitted above the limit {account.epsilon:g} of '{account.name}'"
    return None


def _audit_fault(state: State, row: dict[str, Any]) -> str | None:
    """An audit says who looked at what, and nothing that could be taken for a charge or a refund."""
    if row["account"] not in state.accounts:
        return f"names '{row['account']}', which is no account"
    strange = sorted(set(row) - AUDIT_FIELDS)
    return f"is an audit, and holds {', '.join(strange)}" if strange else None
