"""One run in a few plain values: what a comparison and an account's page say of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dptrain.report.facts import headline_name
from dptrain.report.phrases import is_number
from dptrain.report.record import FROM_PRIVATE_ROWS, RunRecord

LOWER_IS_BETTER = ("test_mae", "test_rmse", "test_log_loss", "public_loss")
"""Metrics whose smaller values are better."""

Brief = dict[str, Any]


def brief(record: RunRecord, folder: Path) -> Brief:
    """What one run promised, spent, reached and cost, as plain data; absent facts are None.

    The record's tier decides what is in it: the public one holds no time of work and no attack.

    Args:
        record: of ``read_record``.
        folder: where it came from; named in the internal tier only.
    """
    get = record.get
    name = headline_name(record)
    internal = record.tier == "internal"
    private_rows = [metric for metric in FROM_PRIVATE_ROWS if metric in record.final]
    return {
        "run_id": record.run_id,
        "folder": str(folder) if internal else None,
        "status": _text(get("result.status")),
        "private": record.private,
        "data": _text(get("result.data")),
        "public_size": _number(get("statement.dataset.public_size")),
        "model": _text(get("result.model")),
        "unit": _text(get("statement.unit.kind")) if record.private else None,
        "max_rows_per_unit": get("statement.unit.max_rows") if record.private else None,
        "adjacency": _text(get("statement.adjacency.relation")) if record.private else None,
        "epsilon": _number(get("statement.guarantee.epsilon")) if record.private else None,
        "delta": _number(get("statement.guarantee.delta")) if record.private else None,
        "epsilon_at": _pairs(get("statement.guarantee.epsilon_at")) if record.private else [],
        "claim": _text(get("statement.guarantee.claim")),
        "created": _text(get("statement.identity.created")),
        "sentence": _text(get("statement.sentence")),
        "spend": _spend(get("statement.composition")),
        "tuning": _tuning(get("statement.tuning")),
        "metric": {"name": name, "value": record.final[name], "better": better(name)} if name else None,
        "metrics": {key: value for key, value in record.final.items() if is_number(value)},
        "metrics_from_private_rows": private_rows,
        "cost": _cost(record),
        "attack": _attack(record) if internal else None,
    }


def better(name: str) -> str:
    """Which way a metric is better: ``higher`` or ``lower``."""
    return "lower" if name in LOWER_IS_BETTER else "higher"


def _spend(block: Any) -> dict[str, Any] | None:
    """The statement's composition block, where a ledger was kept."""
    if not isinstance(block, dict) or not is_number(block.get("total")):
        return None
    numbers = ("prior", "this_run", "total", "limit_epsilon", "limit_delta", "remaining")
    named = {key: _text(block.get(key)) for key in ("account", "ledger_id", "rule")}
    return named | {"entry": block.get("entry")} | {key: _number(block.get(key)) for key in numbers}


def _tuning(block: Any) -> dict[str, Any] | None:
    if not isinstance(block, dict) or not block.get("strategy"):
        return None
    shown = {key: _number(block.get(key)) for key in ("epsilon_before", "epsilon_after")}
    return {"strategy": _text(block.get("strategy")), **shown, "public_only": block.get("public_only") is True}


def _cost(record: RunRecord) -> dict[str, Any]:
    """Steps and parameters; in the internal tier time, device and the ratio to a plain run where it was recorded."""
    names = ("steps", "parameters", "seconds", "ratio_to_plain")
    numbers = {name: _number(record.get(f"result.{name}")) for name in names}
    return {**numbers, "device": _text(record.get("result.device"))}


def _attack(record: RunRecord) -> dict[str, Any] | None:
    """The strongest attack of the audit and its verdict."""
    attacks = [a for a in record.audit.get("attacks") or [] if isinstance(a, dict) and isinstance(a.get("auc"), dict)]
    usable = [a for a in attacks if is_number(a["auc"].get("value"))]
    if not usable:
        return None
    strongest = max(usable, key=lambda a: a["auc"]["value"])
    auc = {key: _number(strongest["auc"].get(key)) for key in ("value", "low", "high")}
    verdict, rejected = _text(record.audit.get("verdict")), record.audit.get("rejected") is True
    return {"name": _text(strongest.get("name")), "auc": auc, "verdict": verdict, "rejected": rejected}


def _pairs(entries: Any) -> list[dict[str, float]]:
    pairs = [(e.get("delta"), e.get("epsilon")) for e in entries or [] if isinstance(e, dict)]
    return [{"delta": d, "epsilon": e} for d, e in pairs if is_number(d) and is_number(e)]


def _number(value: Any) -> float | None:
    return value if is_number(value) else None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
