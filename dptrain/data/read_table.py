"""Opens a csv or parquet file as columns of stripped text, and refuses what is no table. Messages quote no cell."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dptrain.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow


def read_csv(path: Path, field: str, names: Sequence[str], separator: str) -> dict[str, np.ndarray]:
    """Columns of a UTF-8 text file with a header line (compressed or not, told by its ending).

    Args:
        path: the file.
        field: setting that named it, for errors.
        names: columns wanted.
        separator: one character between fields.

    Returns:
        Column -> (N,) object array of stripped text; a missing cell is "".

    Raises:
        ConfigError: no text, no table, columns missing or twice, lines of unequal length, no row.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, sep=separator, header=None, dtype=str, na_filter=False, encoding="utf-8-sig")
    except pd.errors.EmptyDataError as error:
        raise _no_table(path, field, "is empty") from error
    except pd.errors.ParserError as error:
        line = re.search(r"line (\d+)", str(error))
        where = f"line {line[1]} has too many fields" if line else "its lines do not divide into the header's columns"
        raise _no_table(path, field, where) from error
    except (UnicodeDecodeError, OSError, EOFError, ValueError) as error:
        raise _no_table(path, field, f"cannot be read as text ({type(error).__name__})") from error
    found = [str(name).strip() for name in table.iloc[0]]
    _check_header(path, field, found, names)
    return {name: _stripped(table[found.index(name)].iloc[1:].fillna("").tolist()) for name in names}


def read_parquet(path: Path, field: str, names: Sequence[str], separator: str) -> dict[str, np.ndarray]:
    """Columns of a parquet file; as ``read_csv``, with numbers as the text that gives them back exactly."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        _check_header(path, field, list(file.schema_arrow.names), names)
        table = file.read(columns=list(names))
    except (pyarrow.ArrowException, OSError) as error:
        raise _no_table(path, field, f"cannot be read as parquet ({type(error).__name__})") from error
    return {name: _text(table.column(name), path, field, name) for name in names}


def _text(column: pyarrow.ChunkedArray, path: Path, field: str, name: str) -> np.ndarray:
    import pyarrow

    kind = column.type
    if pyarrow.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    checks = (pyarrow.types.is_integer, pyarrow.types.is_floating, pyarrow.types.is_boolean, pyarrow.types.is_string,
              pyarrow.types.is_large_string, pyarrow.types.is_decimal, pyarrow.types.is_null)  # fmt: skip
    if not any(check(kind) for check in checks):
        raise ConfigError(field, path, f"column '{name}' is of type {kind}", "convert it to numbers or text")
    if pyarrow.types.is_floating(kind):
        values = column.cast(pyarrow.float64()).to_pylist()
        # 3.0 is written 3, so that an integer column that once held a gap still matches its declared categories.
        cells = ["" if v is None else str(int(v)) if v.is_integer() and abs(v) < 2**53 else repr(v) for v in values]
    else:
        cells = ["" if v is None else str(v) for v in column.to_pylist()]
    return _stripped(cells)


def _stripped(cells: Sequence[str]) -> np.ndarray:
    return np.array([cell.strip() for cell in cells], dtype=object)


def _check_header(path: Path, field: str, found: Sequence[str], names: Sequence[str]) -> None:
    """Never quotes what the header holds: in a file without one it is somebody's row."""
    for name in names:
        if name not in found:
            raise ConfigError(field, path, f"has no column '{name}'", "check the header and the declared columns")
    if len(set(found)) < len(found):
        twice = next(i for i, name in enumerate(found) if name in found[:i])
        first = found.index(found[twice])
        raise ConfigError(
            field, path, f"columns {first + 1} and {twice + 1} have the same name", "give every column its own name"
        )


def _no_table(path: Path, field: str, problem: str) -> ConfigError:
    return ConfigError(field, path, problem, "give a table with one header and rows of equal length")
