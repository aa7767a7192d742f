"""The gate: rows are compared with what was declared about them before anything is spent on them.

It stands between identifying the data set and ``ledger.reserve``. What it finds is computed from private rows without
noise: it goes to ``internal/gate.json`` of the run, and nowhere else. Messages name checks, never figures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dptrain.config_data import ColumnConfig, DataConfig
from dptrain.config_gate import GateConfig
from dptrain.data import gate_checks
from dptrain.data.gate_checks import Check
from dptrain.data.gate_columns import check_columns
from dptrain.data.quarantine import NamedRows, quarantine, refuse_quarantined
from dptrain.data.source import SourceInfo, Splits
from dptrain.data.units import found_rows
from dptrain.errors import ConfigError, suggest
from dptrain.run_folder import GATE, RunFolder, write_json

SCHEMA = "dptrain.gate/1"

__all__ = ["NamedRows", "check_gate", "check_rows", "gate_rows", "write_outcome"]


def check_gate(gate: GateConfig, data: DataConfig, info: SourceInfo) -> None:
    """Refuses declarations that do not fit the data's public facts. Reads no private row.

    Raises:
        ConfigError: naming the setting.
    """
    reference = gate.label_reference
    if reference is not None and info.task in ("regression", "language", "token_classification"):
        problem = f"data of task {info.task} has no classes"
        raise ConfigError("gate.label_reference", reference, problem, "leave it out")
    classes = max(info.num_classes, 2)
    if reference is not None and len(reference) != classes:
        problem = f"lists {len(reference)} shares, and data '{info.name}' has {classes} classes"
        raise ConfigError("gate.label_reference", reference, problem, "give the share of every class")
    for name in gate.whole_numbers:
        column = data.columns.get(name)
        if column is None or column.categories is not None:
            numeric = [known for known, declared in data.columns.items() if declared.categories is None]
            problem = "is no numeric column of data.columns"
            raise ConfigError("gate.whole_numbers", name, problem, suggest(name, numeric))
    bounded = gate.input_low is not None or gate.input_high is not None
    if bounded and data.columns:
        problem = "is for inputs that are numbers in the file; those of a table are encoded"
        shown = f"input_low={gate.input_low} input_high={gate.input_high}"
        raise ConfigError("gate", shown, problem, "set gate.max_outside_share: data.columns has the bounds")
    if gate.max_outside_share is not None and not data.columns and not bounded:
        raise ConfigError(
            "gate.max_outside_share",
            gate.max_outside_share,
            f"data '{info.name}' declares no columns, so nothing says what is outside",
            "set gate.input_low and gate.input_high",
        )


def check_rows(gate: GateConfig, columns: dict[str, ColumnConfig], info: SourceInfo, splits: Splits) -> list[Check]:
    """Every check that was declared, on the private rows as the source gave them: uncapped, unmapped.

    Args:
        gate: the settings.
        columns: declared columns, for tables.
        info: public facts; its shape and classes are always checked.
        splits: as ``load_capped`` returns them: its ``uncapped`` rows are looked at, where it has any. Tables bring
            ``cells``, their text before it was encoded.

    Raises:
        ConfigError: a check on columns was declared, and the source hands over no cells.
    """
    rows, cells = splits.train if splits.uncapped is None else splits.uncapped, splits.cells
    if columns and cells is None:
        for name in ("max_null_share", "max_outside_share", "whole_numbers"):
            if getattr(gate, name) not in (None, []):
                problem = f"data '{info.name}' hands over encoded rows alone, which do not show it"
                raise ConfigError(f"gate.{name}", getattr(gate, name), problem, "leave it out")
    made = [gate_checks.schema(rows, info)]
    if cells is None:
        made += gate_checks.inputs(rows, gate.input_low, gate.input_high, gate.max_outside_share, gate.max_null_share)
    else:
        made += check_columns(cells, columns, gate)
    if gate.label_reference is not None:
        made.append(gate_checks.labels(rows, gate.label_reference, gate.max_label_distance))
    if gate.max_duplicate_share is not None:
        made.append(gate_checks.duplicates(rows, gate.max_duplicate_share))
    if gate.max_rows_per_unit is not None:
        made.append(gate_checks.unit_rows(rows, gate.max_rows_per_unit))
    return made


def gate_rows(
    gate: GateConfig, data: DataConfig, info: SourceInfo, splits: Splits, named: NamedRows, folder: RunFolder
) -> dict[str, Any]:
    """Lets rows in, or refuses them before anything is spent on them.

    Args:
        gate: the settings.
        data: declared columns are its.
        info: public facts.
        splits: as for ``check_rows``.
        named: the rows that will be trained on, and what names them.
        folder: of the run that asks; where rows are refused it is made, for its ``internal/gate.json``.

    Returns:
        The outcome, for ``write_outcome`` once the run has its folder; internal tier.

    Raises:
        ConfigError: the rows are quarantined; or under ``enforce`` they fail a check, and are quarantined now.

    Guarantee: under ``observe`` and ``off`` nothing that was computed from the rows decides what happens next (but for
    the time that a name takes). Under ``enforce`` one bit does, whether the run exists: it is not covered by epsilon
    (docs/gates.md).
    """
    check_gate(gate, data, info)
    refuse_quarantined(named, info.name)
    if gate.mode == "off":
        outcome = {"schema": SCHEMA, "mode": gate.mode, "passed": None, "failed": [], "digests": {}, "checks": []}
        return outcome | {"rows": found_rows(splits)}
    checks = check_rows(gate, data.columns, info, splits)
    failed = [check.name for check in checks if not check.passed]
    # A name of its own costs a pass over the rows: it is made where somebody may want to quarantine by it.
    digests = named.all() if failed else named.known()
    outcome = {
        "schema": SCHEMA,
        "mode": gate.mode,
        "passed": not failed,
        "failed": failed,
        "digests": digests,
        "checks": [check.to_json() for check in checks],
        "rows": found_rows(splits),
    }
    if failed and gate.mode == "enforce":
        quarantine([digests], f"gate: {', '.join(failed)}", dataset=info.name, run=folder.run_id)
        written = write_outcome(folder, outcome)
        raise ConfigError(
            "gate.mode",
            gate.mode,
            f"the rows do not pass {', '.join(failed)}, and are quarantined",
            f"the figures are in {written}; correct the rows, or see 'dptrain data release'",
        )
    return outcome


def write_outcome(folder: RunFolder, outcome: dict[str, Any]) -> Path:
    """Writes ``internal/gate.json`` (0600), makes the folder (0700) where a refused run has none; returns its path."""
    folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.internal.mkdir(exist_ok=True, mode=0o700)
    write_json(folder.internal / GATE, outcome)
    return folder.internal / GATE
