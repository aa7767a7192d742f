"""Checks on a table's cells as they stood in the file: encoded, a missing cell is a midpoint and an outlier a bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dptrain.config_data import ColumnConfig
from dptrain.config_gate import GateConfig
from dptrain.data.columns import MISSING, codes, numbers
from dptrain.data.gate_checks import Check


@dataclass(frozen=True)
class ColumnFacts:
    """Shares of one column's cells, each in [0, 1]; internal tier."""

    missing: float
    outside: float
    """Not missing, and outside of the declared bounds or none of the declared categories."""
    broken: float
    """Numbers that are not whole; 0 for categories."""


def column_facts(cells: np.ndarray, column: ColumnConfig, field: str) -> ColumnFacts:
    """What one column holds, by the rules by which it is encoded.

    Args:
        cells: (N,) stripped text.
        column: its declaration. A declared category named like a missing value (``NA``) is a category.
        field: setting named in errors.

    Raises:
        ConfigError: a cell of a numeric column is no number (row named, content not).
    """
    import pandas as pd

    count = max(len(cells), 1)
    if column.categories is not None:
        strange = cells[codes(cells, column.categories) < 0]
        missing = int(pd.Series(strange, dtype=object).isin(MISSING).sum())
        return ColumnFacts(missing / count, (len(strange) - missing) / count, 0.0)
    assert column.low is not None and column.high is not None
    value = numbers(cells, field)
    missing = np.isnan(value)
    outside = (value < column.low) | (value > column.high)
    whole = missing | ~np.isfinite(value) | (value == np.floor(value))
    return ColumnFacts(float(missing.sum() / count), float(outside.sum() / count), float((~whole).sum() / count))


def check_columns(
    cells: Mapping[str, np.ndarray], columns: Mapping[str, ColumnConfig], gate: GateConfig
) -> list[Check]:
    """Checks ``nulls``, ``ranges`` and ``whole_numbers``, each only where it was declared; one name a check, whichever
    columns fail it.

    Args:
        cells: column -> (N,) text of the training rows.
        columns: as declared (``data.columns``); each must be a key of ``cells``.
        gate: the settings.
    """
    if gate.max_null_share is None and gate.max_outside_share is None and not gate.whole_numbers:
        return []
    facts = {name: column_facts(cells[name], column, f"data.columns.{name}") for name, column in columns.items()}
    made = []
    if gate.max_null_share is not None:
        found = {name: fact.missing for name, fact in facts.items()}
        made.append(_at_most("nulls", gate.max_null_share, "max_null_share", found))
    if gate.max_outside_share is not None:
        found = {name: fact.outside for name, fact in facts.items()}
        made.append(_at_most("ranges", gate.max_outside_share, "max_outside_share", found))
    if gate.whole_numbers:
        broken = {name: facts[name].broken for name in gate.whole_numbers}
        passed = not any(broken.values())
        made.append(Check("whole_numbers", passed, {"whole_numbers": list(gate.whole_numbers)}, broken))
    return made


def _at_most(name: str, most: float, setting: str, found: dict[str, float]) -> Check:
    return Check(name, all(share <= most for share in found.values()), {setting: most}, found)
