"""The closed schema of a statement: which fields there are, of which kind and range; nothing else may be in it.

``statement.schema.json`` beside this file is JSON Schema (draft 2020-12), so that anyone can check a statement with any
tool. The checker here knows just the keywords that it uses, and refuses a schema that uses another: half a page instead
of a dependency, and nothing in a hostile statement (no ``$ref`` to elsewhere, no format) reaches code of its own.
"""

from __future__ import annotations

import json
import math
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

SCHEMA = "dptrain.statement/2"
FILE = Path(__file__).with_name("statement.schema.json")
KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}
ANNOTATIONS = {"$schema", "$id", "$defs", "title", "description"}
CHECKED = {
    *("type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf", "$ref", "pattern"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "maxLength", "minItems", "maxItems"),
    "maxProperties",
}


@lru_cache(maxsize=1)
def schema() -> dict[str, Any]:
    """The schema document."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def faults(value: Any, most: int = 5) -> list[str]:
    """Where a value does not fit the schema: ``path: what is wrong``; empty where it fits.

    Args:
        value: parsed JSON.
        most: how many are listed.
    """
    found: list[str] = []
    _check(value, schema(), "", found)
    return found[:most]


def _check(value: Any, rules: dict[str, Any], path: str, found: list[str]) -> None:
    strange = set(rules) - CHECKED - ANNOTATIONS
    if strange:
        raise AssertionError(f"the schema uses {sorted(strange)}, which the checker does not know")
    if "$ref" in rules:
        _check(value, schema()["$defs"][rules["$ref"].removeprefix("#/$defs/")], path, found)
        return
    if "anyOf" in rules:
        tried: list[list[str]] = []
        for option in rules["anyOf"]:
            tried.append([])
            _check(value, option, path, tried[-1])
            if not tried[-1]:
                return
        found.extend(min(tried, key=len) if value is not None else tried[0])
        return
    wrong = _wrong(value, rules)
    if wrong:
        found.append(f"{path or 'statement'}: {wrong}")
        return
    if isinstance(value, dict):
        _check_object(value, rules, path, found)
    if isinstance(value, list) and "items" in rules:
        for index, item in enumerate(value):
            _check(item, rules["items"], f"{path}.{index}".lstrip("."), found)


def _check_object(value: dict[str, Any], rules: dict[str, Any], path: str, found: list[str]) -> None:
    known, other = rules.get("properties", {}), rules.get("additionalProperties", True)
    before = len(found)
    for name in rules.get("required", ()):
        if name not in value:
            found.append(f"{path}.{name}".lstrip(".") + ": is missing")
    for name, item in value.items():
        if name not in known and other is False:
            found.append(f"{path}.{name[:60]}".lstrip(".") + f": is not a field of {SCHEMA}")
        elif "const" in known.get(name, ()):
            _check(item, known[name], f"{path}.{name}".lstrip("."), found)
    if len(found) > before:
        return  # an event of another type is not looked into: trying each type at each level takes 4^levels times
    for name, item in value.items():
        if name in known or isinstance(other, dict):
            _check(item, known.get(name, other), f"{path}.{name[:60]}".lstrip("."), found)


def _wrong(value: Any, rules: dict[str, Any]) -> str:
    """What is wrong with a value itself, apart from what is inside it."""
    kinds = rules.get("type")
    if kinds is not None:
        named = [kinds] if isinstance(kinds, str) else kinds
        if not any(_is(value, kind) for kind in named):
            return f"must be {' or '.join(named)}"
    if "const" in rules and not _same(value, rules["const"]):
        return f"must be {json.dumps(rules['const'])}"
    if "enum" in rules and not any(_same(value, option) for option in rules["enum"]):
        return f"must be one of {json.dumps(rules['enum'])}"
    if isinstance(value, str):
        if len(value) > rules.get("maxLength", math.inf):
            return f"is longer than {rules['maxLength']} characters"
        if "pattern" in rules and not re.search(rules["pattern"], value):
            return f"must match {rules['pattern']}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _out_of_range(value, rules)
    if isinstance(value, list) and not rules.get("minItems", 0) <= len(value) <= rules.get("maxItems", math.inf):
        return f"has {len(value)} entries"
    if isinstance(value, dict) and len(value) > rules.get("maxProperties", math.inf):
        return f"has {len(value)} fields"
    return ""


def _out_of_range(value: float, rules: dict[str, Any]) -> str:
    if isinstance(value, int) and abs(value) >= 2**53:
        return "is too large"
    if value < rules.get("minimum", -math.inf) or value <= rules.get("exclusiveMinimum", -math.inf):
        return "is too small"
    if value > rules.get("maximum", math.inf) or value >= rules.get("exclusiveMaximum", math.inf):
        return "is too large"
    return ""


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, KINDS[kind])


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other
