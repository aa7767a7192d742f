"""dptrain verify on what is hostile, too dear to price, unknown or reworded: refused in one line, within bounds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from statement_maker import RECORDS, changes, leaves, plan, put, signed, status, written

from dptrain.cli import run
from dptrain.errors import ConfigError
from dptrain.privacy.seal import signed_by, statement_digest
from dptrain.privacy.statement_schema import faults
from dptrain.privacy.verdict import MISMATCH
from dptrain.privacy.verify import verified

pytestmark = pytest.mark.usefixtures("remembered")


HOSTILE_FILES = {
    "empty": b"",
    "not json": b"\x80\x04junk",
    "a list": b"[]",
    "not a number": b'{"schema": NaN}',
    "infinite": b'{"schema": 1e999}',
    "minus infinity": b'{"schema": -Infinity}',
    "a million digits": b'{"schema": ' + b"9" * 1_000_000 + b"}",
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    "a name twice": b'{"schema": "dptrain.statement/2", "schema": "dptrain.statement/2"}',
    "hundred thousand names and one twice": b"{" + b",".join(b'"%x":0' % k for k in range(100_000)) + b',"fff":0}',
    "too large": b'"' + b"a" * (3 << 20) + b'"',
    "old": b'{"schema": "dptrain.statement/1"}',
    "new": b'{"schema": "dptrain.statement/3"}',
    "escape codes": b'{"schema": "\\u001b[2J\\u0007"}',
    "lone surrogate": b'{"schema": "\\ud800"}',
}


@pytest.mark.parametrize("name", sorted(HOSTILE_FILES))
def test_a_hostile_file_is_rejected_in_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "statement.json"
    file.write_bytes(HOSTILE_FILES[name])
    began = time.monotonic()
    assert run(["verify", f"path={file}"]) == 4
    assert time.monotonic() - began < 5
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and shown.err.isascii() and "\x1b" not in shown.out + shown.err
    if name == "old":
        assert "dptrain.statement/1" in shown.err and "release" in shown.err


def test_events_that_cost_too_much_are_not_priced(true_statement: dict[str, Any], tmp_path: Path) -> None:
    """Each signed by the trusted key, so that nothing but the bounds themselves stops it; each in under ten seconds."""

    def event(sigma: float, rate: float, count: int) -> dict[str, Any]:
        step = {
            "type": "poisson_sampled",
            "sampling_rate": rate,
            "event": {"type": "gaussian", "noise_multiplier": sigma},
        }
        return {"type": "self_composed", "count": count, "event": step}

    nested: dict[str, Any] = {"type": "gaussian", "noise_multiplier": 1.0}
    for _ in range(12):
        nested = {"type": "self_composed", "count": 10**9, "event": nested}
    many = [event(1.0 + k / 1e6, 0.01, 1) for k in range(3000)]
    cases = [
        ({"noise_multiplier": 1e-300}, {}, []),
        ({"noise_multiplier": 1e-3}, {}, []),
        ({"noise_multiplier": 0.06}, {"steps_planned": 99_999_999, "steps_done": 99_999_999}, []),
        ({"noise_multiplier": 1e9}, {"steps_planned": 10**10, "steps_done": 10**10}, []),
        ({"noise_multiplier": 1e-5}, {"rate": 1e-12}, []),
        ({}, {}, [nested]),
        ({}, {}, many),
        ({}, {}, [event(0.051, 1.0, 99_999_999)]),
        ({"noise_multiplier": 0.16}, {"steps_planned": 1, "steps_done": 1}, []),
        ({}, {}, [event(0.2 + k / 5000, 0.01, 1) for k in range(9)]),
    ]
    for mechanism, sampling, beside in cases:
        changed = true_statement | {
            "mechanism": true_statement["mechanism"] | mechanism | {"beside": beside},
            "sampling": true_statement["sampling"] | sampling,
        }
        began = time.process_time()
        verdict = verified(written(tmp_path, signed(changed)))
        assert not verdict.holds
        assert time.process_time() - began < 10, (mechanism, sampling)


@pytest.mark.parametrize("kind", ["self_composed", "repeat_and_select", "composed"])
def test_nested_events_cost_no_more_than_they_are_long(
    kind: str, true_statement: dict[str, Any], tmp_path: Path
) -> None:
    """Unsigned: the schema sees them before anyone is asked who said it. Each level once took four times the last."""
    event: dict[str, Any] = {"type": "gaussian", "noise_multiplier": 1.0}
    for _ in range(13 if kind == "composed" else 27):
        event = {
            "self_composed": {"type": kind, "count": 1, "event": event},
            "repeat_and_select": {"type": kind, "event": event, "trials": {"name": "poisson", "mean": 2.0}},
            "composed": {"type": kind, "events": [event]},
        }[kind]
    for last in ({}, {"extra": 1}):
        changed = put(true_statement, ("mechanism", "beside"), [event | last])
        began = time.process_time()
        assert not verified(written(tmp_path, changed)).holds
        assert time.process_time() - began < 1


def test_a_bundle_of_special_files_is_not_read(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "statement.json")
    assert not verified(tmp_path / "statement.json").holds
    with pytest.raises(ConfigError, match="does not exist"):
        verified(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no statement"):
        verified(tmp_path / "empty")


def test_keys_and_heads_are_read_within_bounds(true_statement: dict[str, Any], tmp_path: Path) -> None:
    """Files that never end, that wait for a writer, or that are not what they should be: one line, exit code 2."""
    import os

    file = written(tmp_path, signed(true_statement))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("hello")
    for name in ("/dev/zero", tmp_path / "pipe", tmp_path, tmp_path / "text", tmp_path / "nowhere"):
        for setting in (f"key={name}", f"heads=[{name}]"):
            assert run(["verify", f"path={file}", setting]) == 2, setting
    for head in ([], {"head": {"sequence": "7", "hash": "a"}}, {"ledger_id": "a", "head": {"sequence": 7}}, 3):
        wrong = written(tmp_path, head, "head.json")
        assert run(["verify", f"path={file}", f"heads=[{wrong}]"]) == 2, head


def test_unknown_fields_are_refused_everywhere(true_statement: dict[str, Any]) -> None:
    assert faults(true_statement) == []
    closed = 0
    for place, _ in [((), None), *_objects(true_statement)]:
        if place[:1] and place[0] in ("environment",):
            continue
        [fault, *_] = faults(put(true_statement, (*place, "extra"), 1)) or [""]
        if place != ("artifact", "files"):
            assert "extra" in fault, place
            closed += 1
    assert closed > 60


def _objects(value: Any, place: tuple[str | int, ...] = ()) -> list[tuple[tuple[str | int, ...], None]]:
    found: list[tuple[tuple[str | int, ...], None]] = []
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(inner, dict):
                found.append(((*place, key), None))
            found += _objects(inner, (*place, key))
    return found


def test_the_schema_names_the_21_blocks() -> None:
    from dptrain.privacy.statement_schema import schema

    blocks = "identity artifact dataset unit adjacency scope threat mechanism sampling randomness guarantee accounting "
    blocks += "tuning composition audit utility pretraining environment governance limits integrity"
    assert len(blocks.split()) == 21
    assert set(schema()["required"]) == {*blocks.split(), "schema", "tier", "private", "sentence"}
    assert set(schema()["properties"]) - set(schema()["required"]) == {"internal", "selfcheck"}


def test_digest_and_signature_cover_everything(true_statement: dict[str, Any]) -> None:
    key = true_statement["integrity"]["public_key"]
    assert signed_by(true_statement, key)
    digests = {statement_digest(true_statement)}
    for place, value in leaves(true_statement):
        changed = put(true_statement, place, changes(value)[0])
        assert not signed_by(changed, key), place
        digests.add(statement_digest(changed))
    assert len(digests) == sum(1 for _ in leaves(true_statement)) + 1


def test_the_internal_tier_is_told_apart(true_statement: dict[str, Any], tmp_path: Path) -> None:
    from dptrain.privacy.statement import internal_statement

    inside = signed(internal_statement(true_statement, {"manifest": {"salt": "00", "digest": "11", "rows": 7}}))
    assert verified(written(tmp_path, inside)).holds
    posing = signed({**inside, "tier": "public"})
    assert status(verified(written(tmp_path, posing)), "schema") == MISMATCH


def test_todays_words_are_those_of_the_schema(true_statement: dict[str, Any]) -> None:
    """Wording is a part of the schema: a statement that was made earlier must verify for ever.

    Fails when a sentence, an assumption or a rule is reworded without a new schema number; change both, or neither.
    """
    import hashlib

    words = [value for place, value in leaves(true_statement) if isinstance(value, str) and place[0] not in RECORDS]
    words = [word for word in words if word not in true_statement["integrity"].values()]
    kept = [word for word in words if word != true_statement["accounting"]["version"]]
    assert hashlib.sha256("\n".join(sorted(kept)).encode()).hexdigest()[:16] == WORDS_OF_SCHEMA_2
    assert plan().delta == 1e-5


WORDS_OF_SCHEMA_2 = "4c351c90351b4d18"
