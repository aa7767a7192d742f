"""The gate: every check passes good rows and fails planted bad ones; what it finds stays inside."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dptrain.cli import run
from dptrain.config_data import ColumnConfig, DataConfig
from dptrain.config_gate import GateConfig
from dptrain.data import gate_checks
from dptrain.data.gate import check_gate, check_rows, gate_rows, write_outcome
from dptrain.data.gate_columns import check_columns, column_facts
from dptrain.data.quarantine import standing
from dptrain.data.quarantine_names import NamedRows
from dptrain.data.source import Rows, SourceInfo, Splits
from dptrain.errors import ConfigError
from dptrain.run_folder import RunFolder, new_run

INFO = SourceInfo(name="made_up", task="multiclass", input_shape=(2, 3), num_classes=4, public_size=40)
GOOD = GateConfig(
    mode="enforce",
    input_low=0.0,
    input_high=1.0,
    max_null_share=0.0,
    label_reference=[0.25] * 4,
    max_label_distance=0.05,
    max_duplicate_share=0.0,
    max_rows_per_unit=2,
)


def good_rows(count: int = 40) -> Rows:
    values = torch.rand(count, 2, 3, generator=torch.Generator().manual_seed(5))
    return Rows(values, torch.arange(count) % 4, torch.arange(count) // 2)


def planted(what: str) -> Rows:
    """Good rows with one fault."""
    rows = good_rows()
    inputs, targets, unit_id = rows.inputs.clone(), rows.targets.clone(), rows.unit_id.clone()
    if what == "schema: shape":
        inputs = inputs.reshape(40, 3, 2)
    if what == "schema: a class that was not declared":
        targets[3] = 4
    if what == "schema: a negative class":
        targets[3] = -1
    if what == "ranges: above":
        inputs[7, 1, 1] = 1.001
    if what == "ranges: below":
        inputs[7, 0, 0] = -1e30
    if what == "ranges: infinite":
        inputs[39, 1, 2] = torch.inf
    if what == "nulls: one":
        inputs[0, 0, 0] = torch.nan
    if what == "labels: a tenth flipped":
        targets[targets == 0] = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    if what == "duplicates: a row again":
        inputs[39], targets[39] = inputs[3], targets[3]
    if what == "unit_rows: three of one":
        unit_id[38] = 0
    return Rows(inputs, targets, unit_id)


FAULTS = ["schema: shape", "schema: a class that was not declared", "schema: a negative class", "ranges: above",
          "ranges: below", "ranges: infinite", "nulls: one", "labels: a tenth flipped", "duplicates: a row again",
          "unit_rows: three of one"]  # fmt: skip


def failed(gate: GateConfig, rows: Rows, info: SourceInfo = INFO) -> list[str]:
    return [check.name for check in check_rows(gate, {}, info, Splits(rows, rows)) if not check.passed]


def test_good_rows_pass_every_check() -> None:
    checks = check_rows(GOOD, {}, INFO, Splits(good_rows(), good_rows()))
    assert [check.name for check in checks] == ["schema", "ranges", "nulls", "labels", "duplicates", "unit_rows"]
    assert all(check.passed for check in checks)


@pytest.mark.parametrize("what", FAULTS)
def test_a_planted_fault_fails_its_check_and_no_other(what: str) -> None:
    assert failed(GOOD, planted(what)) == [what.split(":")[0]]


@pytest.mark.parametrize("what", [fault for fault in FAULTS if not fault.startswith("schema")])
def test_what_was_not_declared_is_not_checked(what: str) -> None:
    assert failed(GateConfig(), planted(what)) == []


def test_targets_of_a_regression_must_be_finite() -> None:
    info = SourceInfo(name="made_up", task="regression", input_shape=(2, 3), num_classes=1, public_size=40)
    inputs = good_rows().inputs
    assert gate_checks.schema(Rows(inputs, torch.zeros(40)), info).passed
    assert not gate_checks.schema(Rows(inputs, torch.full((40,), torch.nan)), info).passed


def test_no_rows_and_rows_without_values_are_no_traceback() -> None:
    empty = Rows(torch.zeros(0, 2, 3), torch.zeros(0, dtype=torch.int64))
    assert failed(GOOD, empty) == ["labels"]  # no row is of the declared classes
    hollow = Rows(torch.zeros(3, 0), torch.tensor([0, 1, 1]))
    assert gate_checks.duplicates(hollow, 0.0).found == {"duplicate_share": pytest.approx(1 / 3)}


# --- each check against the same thing said plainly


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=40))
def test_repeats_are_counted_as_a_set_counts_them(pairs: list[tuple[int, int]]) -> None:
    rows = Rows(torch.tensor([[float(a)] for a, _ in pairs]).reshape(-1, 1), torch.tensor([b for _, b in pairs]).long())
    found = gate_checks.duplicates(rows, 0.5).found["duplicate_share"]
    assert found == (len(pairs) - len(set(pairs))) / max(len(pairs), 1)


def test_repeats_are_told_from_rows_that_only_sketch_alike() -> None:
    """1,000 values, of which 999 are alike in all rows: most sketches do not see the difference."""
    inputs = torch.zeros(60, 1000)
    inputs[:, 700] = torch.arange(60) // 2
    for at in (700, *range(0, 1000, 97)):
        moved = inputs.roll(at - 700, dims=1)
        found = gate_checks.duplicates(Rows(moved, torch.zeros(60, dtype=torch.int64)), 0.5).found
        assert found == {"duplicate_share": 0.5}
    words = gate_checks._sketches(Rows(inputs, torch.zeros(60, dtype=torch.int64)))
    assert len(set(words.tolist())) < 30  # else this test says nothing


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int64, torch.float16, torch.float64, torch.bool])
def test_repeats_are_found_whatever_the_type(kind: torch.dtype) -> None:
    inputs = (torch.arange(12).reshape(6, 2) % 8 // (1 if kind != torch.bool else 4)).to(kind)
    expected = 6 - len({tuple(row) for row in inputs.tolist()})
    for targets in (torch.zeros(6, dtype=torch.int64), torch.zeros(6, dtype=torch.float32)):
        assert gate_checks.duplicates(Rows(inputs, targets), 1.0).found["duplicate_share"] == expected / 6


def test_repeats_are_found_across_parts_and_single_bits_tell_rows_apart() -> None:
    count = gate_checks.STRIDE + 3
    inputs = torch.arange(count, dtype=torch.float32)[:, None]
    inputs[-1] = inputs[0]
    inputs[-2] = torch.nextafter(inputs[1], torch.tensor(9.0))
    found = gate_checks.duplicates(Rows(inputs, torch.zeros(count, dtype=torch.int64)), 0.0).found
    assert found["duplicate_share"] == 1 / count


NUMBER = st.one_of(st.floats(-3, 3, width=32), st.sampled_from([np.nan, np.inf, -np.inf]))


@given(st.lists(st.tuples(NUMBER, NUMBER), min_size=1, max_size=30))
def test_bounds_and_nans_are_counted_row_by_row(pairs: list[tuple[float, float]]) -> None:
    rows = Rows(torch.tensor(pairs), torch.zeros(len(pairs), dtype=torch.int64))
    ranges, nulls = gate_checks.inputs(rows, -1.0, 1.0, 0.3, 0.3)
    null = [any(np.isnan(pair)) for pair in pairs]
    outside = [not n and any(abs(v) > 1 for v in pair) for n, pair in zip(null, pairs, strict=True)]
    assert nulls.found["null_share"] == sum(null) / len(pairs)
    assert ranges.found["outside_share"] == sum(outside) / len(pairs)
    assert (ranges.passed, nulls.passed) == (sum(outside) / len(pairs) <= 0.3, sum(null) / len(pairs) <= 0.3)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=60), st.lists(st.integers(1, 9), min_size=3, max_size=3))
def test_the_label_distance_is_the_largest_difference_of_any_event(targets: list[int], weights: list[int]) -> None:
    reference = [w / sum(weights) for w in weights]
    rows = Rows(torch.zeros(len(targets), 1), torch.tensor(targets))
    shares = [targets.count(k) / len(targets) for k in range(3)]
    events = [[k for k in range(3) if mask >> k & 1] for mask in range(8)]
    largest = max(sum(shares[k] for k in event) - sum(reference[k] for k in event) for event in events)
    assert gate_checks.labels(rows, reference, 0.1).found["distance"] == pytest.approx(largest, abs=1e-12)


AGE, CITY = ColumnConfig(low=0, high=100), ColumnConfig(categories=["Ulm", "Bonn", "NA"])
CELL = st.sampled_from(["", "NA", "nan", "7", "7.5", "-1", "100", "100.5", "inf", "1e9", "Ulm", "Bonn", "Bon", "Köln"])


@given(st.lists(CELL, min_size=1, max_size=30))
def test_cells_are_told_apart_as_they_stood_in_the_file(cells: list[str]) -> None:
    numeric = [c for c in cells if c in ("", "NA", "nan") or c.lstrip("-")[:1].isdigit() or c == "inf"]
    if numeric:
        fact = column_facts(np.array(numeric, dtype=object), AGE, "data.columns.age")
        assert fact.missing == sum(c in ("", "NA", "nan") for c in numeric) / len(numeric)
        assert fact.outside == sum(c in ("-1", "100.5", "inf", "1e9") for c in numeric) / len(numeric)
        assert fact.broken == sum(c in ("7.5", "100.5") for c in numeric) / len(numeric)
    fact = column_facts(np.array(cells, dtype=object), CITY, "data.columns.city")
    assert fact.missing == sum(c in ("", "nan") for c in cells) / len(cells)  # NA is a declared city
    assert fact.outside == sum(c not in ("", "nan", "NA", "Ulm", "Bonn") for c in cells) / len(cells)


@pytest.mark.parametrize(
    ("setting", "name", "bad"),
    [
        ({"max_null_share": 0.2}, "nulls", {"age": ["1", "", "", "4"], "city": ["Ulm"] * 4}),
        ({"max_null_share": 0.2}, "nulls", {"age": ["1", "2", "3", "4"], "city": ["", "nan", "Ulm", "Ulm"]}),
        ({"max_outside_share": 0.2}, "ranges", {"age": ["1", "2", "101", "1e38"], "city": ["Ulm"] * 4}),
        ({"max_outside_share": 0.2}, "ranges", {"age": ["1", "2", "3", "4"], "city": ["Köln", "ulm", "Ulm", "Ulm"]}),
        ({"whole_numbers": ["age"]}, "whole_numbers", {"age": ["1", "2", "3", "4.5"], "city": ["Ulm"] * 4}),
    ],
)
def test_columns_pass_good_cells_and_fail_bad_ones(setting: dict[str, Any], name: str, bad: dict[str, Any]) -> None:
    gate, columns = GateConfig(**setting), {"age": AGE, "city": CITY}
    good = {"age": ["1", "2.0", "", "4", "100", "0"], "city": ["Ulm", "Bonn", "NA", "", "Ulm", "Ulm"]}
    for cells, passes in ((good, True), (bad, False)):
        checks = check_columns({k: np.array(v, dtype=object) for k, v in cells.items()}, columns, gate)
        assert [(check.name, check.passed) for check in checks] == [(name, passes)]
    assert check_columns({}, columns, GateConfig()) == []


# --- what is declared


@pytest.mark.parametrize(
    ("gate", "data", "info", "message"),
    [
        ({"label_reference": [0.5, 0.5]}, {}, {}, "lists 2 shares, and data 'made_up' has 4 classes"),
        ({"label_reference": [0.5, 0.5]}, {}, {"task": "regression", "num_classes": 1}, "has no classes"),
        ({"whole_numbers": ["agee"]}, {"columns": {"age": AGE}}, {}, "did you mean 'age'?"),
        ({"whole_numbers": ["city"]}, {"columns": {"city": CITY}}, {}, "is no numeric column"),
        ({"max_outside_share": 0.1}, {}, {}, "gate.input_low"),
        ({"input_low": 0.0}, {"columns": {"age": AGE}}, {}, "those of a table are encoded"),
    ],
)
def test_declarations_must_fit_the_data(
    gate: dict[str, Any], data: dict[str, Any], info: dict[str, Any], message: str
) -> None:
    facts = SourceInfo(**{"name": "made_up", "task": "multiclass", "input_shape": (2,), "num_classes": 4,
                          "public_size": 9} | info)  # fmt: skip
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        check_gate(GateConfig(**gate), DataConfig(**data), facts)


def test_encoded_rows_are_not_taken_for_cells() -> None:
    """Once encoded a missing cell is a midpoint: a source without cells must not pass as one without gaps."""
    with pytest.raises(ConfigError, match=r"gate\.max_null_share=0\.1: data 'made_up' hands over encoded rows alone"):
        check_rows(GateConfig(max_null_share=0.1), {"age": AGE}, INFO, Splits(good_rows(), good_rows()))


def test_the_shipped_groups_are_the_schema_s_defaults_in_three_modes() -> None:
    from dptrain.compose import compose

    for mode in ("observe", "enforce", "off"):
        assert compose("train", [f"gate={mode}"]).gate == GateConfig(mode=mode)
    assert compose("train").gate == GateConfig() == GateConfig(mode="observe")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["gate=enfroce"], "did you mean 'enforce'?"),
        (["gate.mode=strict"], "gate.mode=strict: is not one of observe, enforce, off"),
        (["gate.max_null_share=2"], "gate.max_null_share=2.0: must be a finite number in [0, 1]"),
        (["gate.max_duplicate_share=nan"], "gate.max_duplicate_share=nan"),
        (["gate.max_rows_per_unit=0"], "gate.max_rows_per_unit=0"),
        (["gate.input_low=1", "gate.input_high=0"], "is not below gate.input_high"),
        (["gate.input_low=inf"], "gate.input_low=inf"),
        (["gate.label_reference=[0.5,0.4]"], "does not sum to 1"),
        (["gate.label_reference=[1.5,-0.5]"], "gate.label_reference=1.5"),
        (["gate.max_nulls=1"], "is not a setting"),
    ],
)
def test_bad_settings_get_one_line(overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", *overrides]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1


# --- the gate itself


def at_the_gate(gate: GateConfig, rows: Rows, folder: RunFolder) -> dict[str, Any]:
    return gate_rows(gate, DataConfig(), INFO, Splits(rows, rows), NamedRows(rows), folder)


def test_observe_notes_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dataclasses import replace

    folder = new_run("seen", str(tmp_path / "seen"))
    outcome = at_the_gate(replace(GOOD, mode="observe"), planted("labels: a tenth flipped"), folder)
    assert outcome["failed"] == ["labels"] and outcome["passed"] is False
    assert not folder.path.exists() and standing()["quarantined"] == []
    folder.create()
    file = write_outcome(folder, outcome)
    assert json.loads(file.read_text()) == outcome
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert capsys.readouterr() == ("", "")


def test_enforce_refuses_quarantines_and_names_checks_only(tmp_path: Path) -> None:
    folder, rows = new_run("bad", str(tmp_path / "bad")), planted("labels: a tenth flipped")
    with pytest.raises(ConfigError) as refusal:
        at_the_gate(GOOD, rows, folder)
    said, outcome = str(refusal.value), json.loads((folder.internal / "gate.json").read_text())
    assert refusal.value.exit_code == 2 and "labels" in said and "\n" not in said
    figures = {f"{value:.3g}" for check in outcome["checks"] for value in numbers_of(check["found"])}
    assert not any(figure in said.replace(str(folder.path), "") for figure in figures - {"0", "1", "2"})
    assert stat.S_IMODE((folder.internal / "gate.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    (entry,) = standing()["quarantined"]
    assert entry["reason"] == "gate: labels" and entry["run"] == "bad" and entry["digest"] in outcome["digests"]
    assert entry["digest"] not in said


def numbers_of(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for inner in value.values() for n in numbers_of(inner)]
    if isinstance(value, list):
        return [n for inner in value for n in numbers_of(inner)]
    return [float(value)]


@pytest.mark.parametrize("mode", ["observe", "enforce", "off"])
def test_what_was_refused_stays_refused_in_every_mode(tmp_path: Path, mode: str) -> None:
    folder, rows = new_run("bad", str(tmp_path / "bad")), planted("duplicates: a row again")
    with pytest.raises(ConfigError, match="do not pass duplicates"):
        at_the_gate(GOOD, rows, folder)
    with pytest.raises(ConfigError, match="these rows are quarantined"):
        at_the_gate(GateConfig(mode=mode), rows, new_run("again", str(tmp_path / "again")))
    assert not (tmp_path / "again").exists()
    assert at_the_gate(GateConfig(mode=mode), good_rows(), folder)["passed"] in (True, None)  # other rows go on


def test_good_rows_are_let_in_and_named(tmp_path: Path) -> None:
    outcome = at_the_gate(GOOD, good_rows(), new_run("good", str(tmp_path / "good")))
    assert outcome["passed"] and outcome["digests"] == {}  # a name is a pass over the rows, and nobody needs it
    plain = at_the_gate(GateConfig(), good_rows(), new_run("good", str(tmp_path / "good")))
    assert plain["digests"] == {} and [check["name"] for check in plain["checks"]] == ["schema"]
    assert at_the_gate(GateConfig(mode="off"), good_rows(), new_run("good", None))["checks"] == []


def test_token_ids_outside_the_vocabulary_and_targets_longer_than_a_row_fail_the_schema() -> None:
    info = SourceInfo(
        name="texts", task="language", input_shape=(4,), num_classes=1, public_size=40, vocabulary=9, pad=0
    )
    ids, told = torch.arange(40).reshape(10, 4) % 9, torch.arange(10) % 4
    assert gate_checks.schema(Rows(ids, told), info).passed
    for wrong_id in (-1, 9):
        bad = ids.clone()
        bad[7, 2] = wrong_id
        assert gate_checks.schema(Rows(bad, told), info).found["targets_outside"] == 1
    assert not gate_checks.schema(Rows(ids, told + 1), info).passed
    with pytest.raises(ConfigError, match="task language has no classes"):
        check_gate(GateConfig(label_reference=[1.0]), DataConfig(), info)
