"""What an account's page is made of, read once: the ledger's own words, and the folders of the runs it names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dptrain.errors import ConfigError
from dptrain.report.brief import Brief, brief
from dptrain.report.record import read_record
from dptrain.run_folder import RunFolder, open_run, read_json

if TYPE_CHECKING:
    from dptrain.privacy.ledger import Ledger

MOST = 10_000
"""Runs beyond which a forecast stops counting."""
Summary = dict[str, Any]


@dataclass(frozen=True)
class KnownRun:
    """A run that the account names: its folder's facts, or why there are none."""

    run_id: str
    brief: Brief | None
    why: str = ""


def read_budget(uri: str | None, name: str, root: Path) -> tuple[Summary, list[KnownRun]]:
    """An account as plain data, and the runs it names, found by their id in the folder of runs.

    The summary is what ``dptrain budget show format=json`` prints, with ``history`` (where the account stood after
    each row), ``shares`` (entry -> its part of what is spent), ``next`` (how many more runs like the newest fit) and
    ``chain`` (what checking the whole ledger found; heads in the runs' statements are held against it).

    Raises:
        ConfigError: no such ledger or account.
        LedgerBroken: the ledger contradicts itself (exit code 3).
    """
    from dptrain.privacy.budget_view import account_data
    from dptrain.privacy.chain import verify_chain
    from dptrain.privacy.ledger import open_ledger

    ledger = open_ledger(uri, create=False)
    summary = account_data(ledger, name)
    runs, heads = read_runs([str(entry["run_id"]) for entry in summary["entries"]], root)
    summary["history"] = history(ledger, name)
    summary["shares"] = shares(ledger, name)
    summary["next"] = next_runs(ledger, name)
    own = [head for head in heads if head["ledger_id"] == ledger.id]
    summary["chain"] = verify_chain(ledger, own).to_json()
    summary["runs_root"] = str(root)
    return summary, runs


def history(ledger: Ledger, name: str) -> list[dict[str, Any]]:
    """Epsilon and limit of the account after each row that moved either, replayed from the first row."""
    from dptrain.privacy.ledger_state import State

    state, moments = State(), []
    for row in ledger.rows():
        state.apply(row, str(row["hash"]))
        account = state.accounts.get(name)
        if account is None or row["kind"] in ("commit", "resume", "link", "freeze", "unfreeze"):
            continue
        now = {"epsilon": account.value, "limit": account.epsilon}
        if not moments or {key: moments[-1][key] for key in now} != now:
            moments.append({"time": row["time"], **now})
    return moments


def shares(ledger: Ledger, name: str) -> dict[int, float]:
    """Entry -> its part of what the account has spent, in [0, 1]; the parts add up to 1.

    The account's epsilon is set by one order of its filter, and at that order the divergences of runs add up exactly.
    An open entry counts whole.
    """
    account = ledger.account(name)
    if not any(account.reserved):
        return {}
    from dptrain.privacy.privacy_filter import UNIT

    stands = [total * UNIT + rule.offset for rule, total in zip(account.rules, account.reserved, strict=True)]
    order = stands.index(min(stands))
    entries = [ledger.state.entries[number] for number in account.entries]
    return {e.entry: e.reserved_steps * e.prices[order] / account.reserved[order] for e in entries}


def next_runs(ledger: Ledger, name: str) -> dict[str, Any] | None:
    """How many more runs like the newest charged one fit, one after another; None where none was charged yet."""
    from dptrain.privacy.privacy_filter import fits, value

    account = ledger.account(name)
    charged = [ledger.state.entries[number] for number in account.entries]
    newest = next((entry for entry in reversed(charged) if entry.event is not None), None)
    if newest is None:
        return None

    def with_more(runs: int) -> list[int]:
        return account.with_more(newest.prices, newest.planned_steps * runs)

    def after(runs: int) -> float:
        return value(account.rules, with_more(runs))

    low, high = 0, 1
    while high <= MOST and fits(account.rules, with_more(high), account.epsilon):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(account.rules, with_more(middle), account.epsilon) else (low, middle)
    kind = {"entry": newest.entry, "purpose": newest.purpose, "epsilon": newest.epsilon, "delta": newest.delta}
    runs = min(low, MOST)
    return {**kind, "runs": runs, "account_after_one": after(1), "account_after_all": after(runs) if runs else None}


def read_runs(run_ids: list[str], root: Path) -> tuple[list[KnownRun], list[dict[str, Any]]]:
    """The runs of these ids under ``root``, each once, and the ledger heads that their statements hold."""
    folders = _by_id(root)
    runs, heads = [], []
    for run_id in dict.fromkeys(run_ids):
        folder = folders.get(run_id)
        if folder is None:
            runs.append(KnownRun(run_id, None, "no finished run of this id lies there"))
            continue
        try:
            record = read_record(folder, "internal")
        except ConfigError as error:
            runs.append(KnownRun(run_id, None, f"its folder cannot be read: {error.problem}"))
            continue
        runs.append(KnownRun(run_id, brief(record, folder.path)))
        head = record.get("statement.composition.head")
        if isinstance(head, dict) and isinstance(head.get("sequence"), int) and isinstance(head.get("hash"), str):
            named = {"sequence": head["sequence"], "hash": head["hash"]}
            heads.append({"ledger_id": str(record.get("statement.composition.ledger_id")), **named})
    return runs, heads


def _by_id(root: Path) -> dict[str, RunFolder]:
    """Finished runs directly under ``root`` and one level below (sweeps), by the id in their result.json."""
    if not root.is_dir():
        return {}
    found: dict[str, RunFolder] = {}
    for result in sorted([*root.glob("*/result.json"), *root.glob("*/*/result.json")]):
        try:
            if isinstance(read_json(result), dict):
                folder = open_run(str(result.parent))
                found.setdefault(folder.run_id, folder)
        except ConfigError:
            continue  # a torn file names no run; the page says that the run was not found
    return found
