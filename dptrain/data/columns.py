"""Turns columns of text into numbers by what was declared about them, never by what the rows hold."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from dptrain.config_data import ColumnConfig
from dptrain.errors import ConfigError

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "<NA>")
"""Cells that count as missing, after stripping white space; a declared category or class of that name wins."""


def check_columns(columns: Mapping[str, ColumnConfig]) -> None:
    """Refuses declarations that cannot scale anything.

    Raises:
        ConfigError: a column has neither bounds nor categories, or both, or bounds out of order, or categories
            that repeat.
    """
    for name, column in columns.items():
        field = f"data.columns.{name}"
        if column.categories is not None:
            if column.low is not None or column.high is not None:
                raise ConfigError(field, "low, high, categories", "are all set", "give bounds or categories, not both")
            if not column.categories:
                raise ConfigError(f"{field}.categories", [], "is empty", "list the public values of the column")
            check_distinct(f"{field}.categories", column.categories)
        elif column.low is None or column.high is None:
            raise ConfigError(field, f"low={column.low} high={column.high}", "says not how to scale it",
                              "set low and high, or categories, from public knowledge")  # fmt: skip
        else:
            check_bounds(field, column.low, column.high)


def check_bounds(field: str, low: float, high: float) -> None:
    """Refuses bounds that are not finite or not in order. Raises ConfigError naming ``field``."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high and math.isfinite(high - low)):
        raise ConfigError(field, f"low={low} high={high}", "are not finite bounds in order", "set low below high")


def check_distinct(field: str, names: list[str]) -> None:
    """Refuses a list of names in which one repeats or is empty. Raises ConfigError naming ``field``."""
    stripped = [str(name).strip() for name in names]
    for name in stripped:
        if stripped.count(name) > 1:
            raise ConfigError(field, name, "is listed twice", "list every value once")
        if not name:
            raise ConfigError(field, repr(name), "is empty, as a missing value is", "leave it out or name it")


def width(columns: Mapping[str, ColumnConfig]) -> int:
    """Number of features D: one a numeric column, one a category."""
    return sum(1 if c.categories is None else len(c.categories) for c in columns.values())


def encode(cells: Mapping[str, np.ndarray], columns: Mapping[str, ColumnConfig], field: str = "data") -> np.ndarray:
    """Features of every row, in the order of the declaration.

    Numeric: clamped to [low, high] and mapped to [-1, 1]; infinities and huge numbers are clamped; a missing value
    becomes 0, the midpoint. Categories: one-hot; a missing or undeclared value is all zeros.

    Args:
        cells: column -> (N,) array of stripped text (or of numbers).
        columns: declared columns; each must be a key of ``cells``.
        field: prefix of the setting named in errors.

    Returns:
        (N, D) float32 in [-1, 1].

    Raises:
        ConfigError: a cell of a numeric column is no number; names column and row, not content.

    Guarantee: row i of the result depends on row i alone.
    """
    rows = len(next(iter(cells.values())))
    features = np.zeros((rows, width(columns)), dtype=np.float32)  # (N, D)
    at = 0
    for name, column in columns.items():
        if column.categories is None:
            assert column.low is not None
            assert column.high is not None
            features[:, at] = scaled(numbers(cells[name], f"{field}.columns.{name}"), column.low, column.high)
            at += 1
        else:
            code = codes(cells[name], column.categories)
            known = np.flatnonzero(code >= 0)
            features[known, at + code[known]] = 1.0
            at += len(column.categories)
    return features


def decode(features: np.ndarray, columns: Mapping[str, ColumnConfig]) -> dict[str, np.ndarray]:
    """What ``encode`` was told of each row, as far as features say it.

    Args:
        features: (N, D or more) whose first columns are those that ``encode`` made.
        columns: as for ``encode``.

    Returns:
        column -> (N,) float64 number, as clamped (a missing one is the midpoint), or (N,) int64 position among the
        categories (-1: none of them).
    """
    found, at = {}, 0
    for name, column in columns.items():
        if column.categories is None:
            assert column.low is not None
            assert column.high is not None
            unit = (features[:, at].astype(np.float64) + 1.0) / 2.0
            found[name] = column.low + unit * (column.high - column.low)
            at += 1
        else:
            block = features[:, at : at + len(column.categories)]
            found[name] = np.where(block.max(axis=1) > 0, block.argmax(axis=1), -1).astype(np.int64)
            at += len(column.categories)
    return found


def numbers(cells: np.ndarray, field: str) -> np.ndarray:
    """(N,) float64 of (N,) text; missing cells are NaN.

    Raises:
        ConfigError: naming the first row that holds something else than a number.
    """
    import pandas as pd

    value = np.asarray(pd.to_numeric(pd.Series(cells, dtype=object), errors="coerce"), dtype=np.float64)
    bad = [row for row in np.flatnonzero(np.isnan(value)) if str(cells[row]) not in MISSING]
    if bad:
        raise ConfigError(field, f"row {bad[0] + 1}", "is not a number", "correct the row, or declare categories")
    return value


def scaled(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """Clamps to the public bounds and maps them to -1 and 1; NaN becomes 0, the midpoint."""
    unit = (np.clip(value, low, high) - low) / (high - low)
    return np.where(np.isnan(value), 0.0, 2.0 * unit - 1.0)


def codes(cells: np.ndarray, names: list[str]) -> np.ndarray:
    """(N,) position of each cell in ``names``; -1 where it is none of them."""
    import pandas as pd

    return np.asarray(pd.Index([str(name).strip() for name in names]).get_indexer(pd.Index(cells)), dtype=np.int64)
