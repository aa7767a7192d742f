"""What a resumed run must share with the run as it was begun; a difference is refused with both values in one line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import dptrain
from dptrain.errors import ConfigError
from dptrain.privacy.plan import Plan

FREE = (
    "execution.physical_batch_size",
    "execution.device",
    "execution.threads",
    "execution.memory_limit",
    "execution.checkpoint",
    "tracking.",
    "checkpoint.",
    "ledger.lease_steps",
    "run.id",
    "run.dir",
    "resume",
)
"""Settings that may change on the way: they change neither the law of the releases nor what the statement says."""


def plan_facts(plan: Plan) -> dict[str, Any]:
    """Everything of a plan that the guarantee rests on, as plain data."""
    names = ("steps", "sampling_rate", "expected_batch_size", "public_size", "unit", "max_rows_per_unit", "adjacency")
    facts: dict[str, Any] = {name: getattr(plan, name) for name in (*names, "noise", "delta", "epsilon")}
    mechanism = plan.mechanism
    if mechanism is not None:
        facts["event"] = mechanism.event()
        facts |= {name: getattr(mechanism, name) for name in ("clipping_norm", "sensitivity_slack", "divisor")}
    return json.loads(json.dumps(facts))


def code_facts(imports: Iterable[str]) -> dict[str, str]:
    """Version and digest of dptrain's own code, and a digest of every file of the user's that was named."""
    facts = {"dptrain": dptrain.__version__, "sources": _sources()}
    for name in imports:
        path = Path(name if name.endswith(".py") else f"{name}.py").expanduser().resolve()
        facts[f"imports {name}"] = _digest([path]) if path.is_file() else "a module"
    return facts


@cache
def _sources() -> str:
    """Of the code that this process was started with."""
    return _digest(sorted(Path(dptrain.__file__).parent.rglob("*.py")))


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def refuse_drift(name: str, was: Any, now: Any) -> None:
    """Refuses a value that is not the one begun with, and names both; of a table, the first that differs."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in sorted({*was, *now}):
            refuse_drift(f"{name}.{key}", was.get(key), now.get(key))
    elif was != now:
        remedy = "a resumed run keeps its settings, code and rows; put it back, or start a new run"
        raise ConfigError(name, now, f"was {was} when the run was begun", remedy)


def refuse_other_code(was: dict[str, str], now: dict[str, str]) -> None:
    """Refuses code that changed since."""
    refuse_drift("code", was, now)
