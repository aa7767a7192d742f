from __future__ import annotations

import hashlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dptrain.tracking.budget import budget_metrics, ledger_tags, statement_digest, statement_tags

COMPOSITION = {
    "ledger_id": "a" * 32,
    "entry": 7,
    "account": "adult",
    "total": 2.5,
    "head": {"sequence": 9, "hash": "b" * 64},
}


@given(st.floats(0, 1000), st.floats(0, 1000))
def test_what_remains_is_never_negative_and_never_too_much(spent: float, limit: float) -> None:
    made = budget_metrics(spent, limit)
    assert made["budget_spent"] == spent
    assert 0 <= made["budget_remaining"] <= max(0.0, limit - spent)
    assert set(made) == {"budget_spent", "budget_remaining"} and all(math.isfinite(v) for v in made.values())


def test_ledger_tags_name_entry_account_and_head() -> None:
    tags = ledger_tags(COMPOSITION)
    assert tags["dp.ledger_entry"] == "7" and tags["dp.account"] == "adult" and tags["dp.ledger"] == "a" * 32
    assert json.loads(tags["dp.ledger_head"]) == COMPOSITION["head"]


@pytest.mark.parametrize("nothing", [None, {}])
def test_without_a_ledger_there_are_no_tags(nothing: dict[str, object] | None) -> None:
    assert ledger_tags(nothing) == {}


def test_the_digest_is_that_of_the_canonical_text_and_moves_with_any_field() -> None:
    statement = {"b": 1.5, "a": {"epsilon": 3.0}}
    assert statement_digest(statement) == hashlib.sha256(b'{"a":{"epsilon":3.0},"b":1.5}').hexdigest()
    assert statement_digest({"a": {"epsilon": 3.0}, "b": 1.5}) == statement_digest(statement)
    assert statement_digest({"b": 1.5, "a": {"epsilon": 3.0000000000000004}}) != statement_digest(statement)


def test_statement_tags_carry_the_promise_exactly() -> None:
    statement = {
        "schema": "dptrain.statement/2",
        "guarantee": {"epsilon": 2.9988437434407875, "delta": 1e-05},
        "unit": {"kind": "user"},
        "composition": COMPOSITION,
    }
    tags = statement_tags(statement)
    assert float(tags["dp.epsilon"]) == 2.9988437434407875 and float(tags["dp.delta"]) == 1e-5
    assert tags["dp.unit"] == "user" and tags["dp.account"] == "adult"
    assert tags["dp.statement_digest"] == statement_digest(statement)


def test_a_statement_without_a_promise_has_no_epsilon_tag() -> None:
    tags = statement_tags({"schema": "s", "guarantee": None, "unit": {"kind": "record"}, "composition": None})
    assert set(tags) == {"dp.statement_digest", "dp.statement_schema", "dp.unit"}
