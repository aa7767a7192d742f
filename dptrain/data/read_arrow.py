"""Reads text columns of parquet files and of data sets that the library ``datasets`` saved to a folder (Arrow)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dptrain.errors import ConfigError
from dptrain.untrusted_json import NotReadable, read_untrusted

if TYPE_CHECKING:
    import pyarrow


def read_parquet_values(path: Path, field: str, names: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of a parquet file as Python values, None where null.

    Raises:
        ConfigError: it is no parquet file, or lacks a column.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        _check(path, field, list(file.schema_arrow.names), names)
        return _values(file.read(columns=list(names)), names)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        problem = f"cannot be read as parquet ({type(error).__name__})"
        raise ConfigError(field, path, problem, "give a parquet file") from error


def read_dataset_folder(path: Path, field: str, names: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of one split of a data set saved by ``Dataset.save_to_disk``: its Arrow files, in their order.

    Raises:
        ConfigError: the folder is no such data set, holds several splits, or lacks a column.
    """
    import pyarrow
    import pyarrow.ipc

    columns: dict[str, list[Any]] = {name: [] for name in names}
    for file in _files(path, field):
        try:
            with pyarrow.memory_map(str(file)) as opened:
                table = pyarrow.ipc.open_stream(opened).read_all()
                _check(file, field, table.column_names, names)
                for name, values in _values(table, names).items():
                    columns[name] += values
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            problem = f"cannot be read as Arrow ({type(error).__name__})"
            raise ConfigError(field, file, problem, "save the data set again") from error
    return columns


def _files(path: Path, field: str) -> list[Path]:
    """The Arrow files that ``state.json`` lists; names that lead out of the folder are refused."""
    remedy = "give the folder that Dataset.save_to_disk() wrote"
    if (path / "dataset_dict.json").is_file():
        splits = sorted(part.name for part in path.iterdir() if (part / "state.json").is_file())
        problem = f"holds several splits ({', '.join(splits[:5])})"
        raise ConfigError(field, path, problem, f"name one, e.g. {path / (splits[0] if splits else 'train')}")
    try:
        state = read_untrusted(path / "state.json")
    except NotReadable as error:
        raise ConfigError(field, path, f"is no saved data set (state.json: {error})", remedy) from error
    listed = state.get("_data_files") if isinstance(state, dict) else None
    names = [item.get("filename") for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ConfigError(field, path, "its state.json lists no files of the folder", remedy)
    files = [path / str(name) for name in names]
    for file in files:
        if not file.is_file():
            raise ConfigError(field, path, f"lacks {file.name}", remedy)
    return files


def _values(table: pyarrow.Table, names: Sequence[str]) -> dict[str, list[Any]]:
    return {name: table.column(name).to_pylist() for name in names}


def _check(path: Path, field: str, found: Sequence[str], names: Sequence[str]) -> None:
    for name in names:
        if list(found).count(name) != 1:
            problem = f"has no column '{name}'" if name not in found else f"has column '{name}' twice"
            raise ConfigError(field, path, problem, "check the file's columns and the declared ones")
