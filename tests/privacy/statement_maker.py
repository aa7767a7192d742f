"""Signed statements for tests: of a small plan, changed at will, and signed again by whoever is asked."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from dptrain.config_privacy import PrivacyConfig
from dptrain.privacy.plan import Plan, compile_plan
from dptrain.privacy.seal import sign_statement
from dptrain.privacy.statement import RunFacts, make_statement
from dptrain.privacy.verdict import Verdict
from dptrain.signing import Signer, load_signer

DATA = {"name": "ward", "licence": "not stated", "public_size": 1000, "public_split": "test rows", "is_public": False}
Place = tuple[str | int, ...]


@cache
def plan(**changes: object) -> Plan:
    """Compiled once for every set of settings: calibration is most of the time of a test."""
    settings = {"epsilon": 2.0, "epochs": 5, "expected_batch_size": 50, **changes}
    return compile_plan(PrivacyConfig(**settings), 1000)  # type: ignore[arg-type]


def facts(steps: int, **changes: object) -> RunFacts:
    settings = {"run_id": "r", "steps_done": steps, "engine": "vmap", "float_class": "exact", "data": DATA, **changes}
    return RunFacts(**settings)  # type: ignore[arg-type]


def stated(steps: int | None = None, signer: Signer | None = None, **changes: object) -> dict[str, Any]:
    """A signed statement, as it would be read back from its file."""
    made = plan(**changes)
    way = "floating" if made.noise == "fast" else "exact"
    statement = make_statement(made, facts(made.steps if steps is None else steps, float_class=way))
    return signed(json.loads(json.dumps(statement, allow_nan=False)), signer)


def signed(statement: dict[str, Any], signer: Signer | None = None) -> dict[str, Any]:
    return sign_statement(statement, signer or load_signer())


def written(folder: Path, statement: Any, name: str = "statement.json") -> Path:
    file = folder / name
    file.write_text(json.dumps(statement))
    return file


def remembering(compute: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of public facts, computed once for every set of arguments."""
    known: dict[str, Any] = {}

    def recall(*args: Any, **named: Any) -> Any:
        key = repr((args, sorted(named.items())))
        if key not in known:
            known[key] = compute(*args, **named)
        return copy.deepcopy(known[key])

    return recall


def leaves(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every leaf and where it is."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*place, key))
    else:
        yield place, value


def put(statement: dict[str, Any], place: Place, value: Any) -> dict[str, Any]:
    """A copy with one leaf changed."""
    changed: Any = copy.deepcopy(statement)
    node = changed
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    return changed


def changes(value: Any) -> list[Any]:
    """A leaf made smaller and larger, or otherwise another value of its kind."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value - 1, value + 1]
    if isinstance(value, float):
        return [value * 0.9 - (0.05 if value == 0 else 0), value * 1.1 + (0.05 if value == 0 else 0)]
    return ["something", 1.0] if value is None else [f"{value} ", value[:-1], ""]


RECORDS = ("identity", "artifact", "dataset", "audit", "utility", "pretraining", "environment", "governance")
"""Blocks on record: no number of the promise rests on them, save the declared size and the data set's name."""


def status(verdict: Verdict, name: str) -> str:
    """How one line of a verdict ended."""
    [line] = [line for line in verdict.lines if line.name == name]
    return line.status
