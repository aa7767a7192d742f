"""What a tracked run says of the budget: two metrics beside accuracy, and tags that lead to ledger and statement."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from dptrain.signing import canonical


def budget_metrics(spent: float, limit: float) -> dict[str, float]:
    """``budget_spent`` and ``budget_remaining``, under the flat names that charts show beside accuracy.

    Args:
        spent: epsilon at which the account stands (or the run, where no ledger is kept).
        limit: epsilon that the account (or the plan) allows; below ``spent`` nothing remains, never less than nothing.
    """
    return {"budget_spent": float(spent), "budget_remaining": max(0.0, float(limit) - float(spent))}


def ledger_tags(composition: Mapping[str, Any] | None) -> dict[str, str]:
    """Tags of a run's ledger entry, from a statement's ``composition`` block; empty where no ledger was kept.

    The head is among them: a ledger that is later put back to an old copy can be held against it.
    """
    if not composition:
        return {}
    named = {"dp.ledger": "ledger_id", "dp.ledger_entry": "entry", "dp.account": "account"}
    tags = {tag: str(composition[key]) for tag, key in named.items() if composition.get(key) is not None}
    if composition.get("head"):
        tags["dp.ledger_head"] = json.dumps(composition["head"], sort_keys=True, separators=(",", ":"))
    return tags


def statement_digest(statement: Mapping[str, Any]) -> str:
    """SHA-256 of a statement as it is signed: its canonical JSON, signature included, in hexadecimal digits."""
    return hashlib.sha256(canonical(dict(statement))).hexdigest()


def statement_tags(statement: Mapping[str, Any]) -> dict[str, str]:
    """Tags that tie a run or a model version to its statement: digest, epsilon, delta, unit, and the ledger's."""
    guarantee, unit = statement.get("guarantee") or {}, statement.get("unit") or {}
    tags = {"dp.statement_digest": statement_digest(statement), "dp.statement_schema": str(statement.get("schema"))}
    tags |= {f"dp.{key}": repr(guarantee[key]) for key in ("epsilon", "delta") if guarantee.get(key) is not None}
    if unit.get("kind"):
        tags["dp.unit"] = str(unit["kind"])
    return tags | ledger_tags(statement.get("composition"))
