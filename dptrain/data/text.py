"""A user's own texts: JSON lines, csv, parquet, or a saved data set; columns and classes declared, nothing learnt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dptrain.config_data import DataConfig
from dptrain.data.columns import MISSING
from dptrain.data.read_arrow import read_dataset_folder, read_parquet_values
from dptrain.data.read_jsonl import read_jsonl
from dptrain.data.read_table import read_csv
from dptrain.data.settings import check_split, existing, needed, only_uses
from dptrain.data.source import Source
from dptrain.data.table import check_classes, describe_split
from dptrain.data.texts import LANGUAGE, Texts, split_of, text_source
from dptrain.errors import ConfigError
from dptrain.registry import sources

ENDINGS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
Cells = dict[str, list[Any]]
"""Column -> N values; None where there is none."""


@sources.register("text")
def text(config: DataConfig, seed: int) -> Source:
    """Rows of text, as token ids (T,) by ``data.text``; one unit a row, or a user by data.unit_column.

    Needs data.path (told by its ending, or a folder of a saved data set), text.column, text.tokenizer, label and
    classes (not for task language), public_size, and public_path or public_fraction. See docs/data.md.

    Raises:
        ConfigError: a declaration is missing or contradicts itself, a file is missing; at loading, a file is none of
            its kind, a text is missing or no text, a label is none of the classes, a row is nobody's (row named,
            content not).
    """
    used = ["path", "public_path", "public_fraction", "public_size", "text", "unit_column", "task"]
    used += [] if config.task == LANGUAGE else ["label", "classes"]
    only_uses(config, used + ([] if config.unit_column is None else ["unit_rows"]))
    task, classes = _task(config)
    size = needed("data.public_size", config.public_size, "and it is not read off private rows")
    _check_columns(config)
    check_split(config)
    path = _place("data.path", needed("data.path", config.path, "so there are no texts"))
    public_path = None if config.public_path is None else _place("data.public_path", config.public_path)
    owners: set[str] = set()

    def read() -> Texts:
        texts = _read(config, "data.path", path, classes)
        owners.update(texts.owner or [])
        return texts

    def read_public() -> Texts:
        assert public_path is not None
        texts = _read(config, "data.public_path", public_path, classes)
        if owners & set(texts.owner or []):
            problem = f"shares values of {config.unit_column} with the private rows"
            raise ConfigError("data.public_path", public_path, problem, "keep all rows of a unit on one side")
        return texts

    return text_source(
        config,
        task=task,
        classes=classes,
        public_size=size,
        read=read,
        mask=split_of(config, seed),
        read_public=None if public_path is None else read_public,
        unit="record" if config.unit_column is None else "user",
        unit_rows=None if config.unit_rows is None else {pair[0]: pair[1] for pair in config.unit_rows},
        public_split=describe_split(config, "rows"),
    )


def _task(config: DataConfig) -> tuple[str, list[str]]:
    """The task and its classes; where classes are declared and no task is, their number tells."""
    if config.task == LANGUAGE:
        return LANGUAGE, []
    if config.task == "regression":
        raise ConfigError("data.task", "regression", "texts have classes", "set data.task=binary, multiclass, language")
    needed("data.label", config.label, "so there is no target; data.task=language needs none")
    names = needed("data.classes", config.classes, "and class names are not learnt from private rows")
    task = config.task or ("binary" if len(names) == 2 else "multiclass")
    return task, check_classes(config, task)


def _check_columns(config: DataConfig) -> None:
    """Text, label and user are three different columns."""
    seen = {needed("data.text.column", config.text.column, "so there is no text"): "data.text.column"}
    for field, name in (("data.label", config.label), ("data.unit_column", config.unit_column)):
        if name in seen:
            raise ConfigError(field, name, f"is {seen[name]} too", "name another column")
        if name is not None:
            seen[name] = field


def _place(field: str, given: str) -> Path:
    path = Path(given).expanduser()
    if path.is_dir():
        return path
    existing(field, given, "file")
    if path.suffix.lower() not in ENDINGS:
        remedy = f"give a file ending in {', '.join(ENDINGS)}, or the folder of a saved data set"
        raise ConfigError(field, given, "does not tell by its ending what it is", remedy)
    return path


def _read(config: DataConfig, field: str, path: Path, classes: Sequence[str]) -> Texts:
    column = str(config.text.column)
    names = [column, *(name for name in (config.label, config.unit_column) if name is not None)]
    cells = read_cells(field, path, names, column)
    count = len(cells[column])
    if count < (2 if field == "data.path" else 1):
        raise ConfigError(field, path, f"has {count} rows", "give a file with rows")
    texts = [_text(value, row, column) for row, value in enumerate(cells[column], start=1)]
    targets = []
    if config.label is not None:
        known = {name: place for place, name in enumerate(classes)}
        for row, value in enumerate(cells[config.label], start=1):
            target = known.get(_cell(value, row, "data.label", config.label))
            if target is None:
                remedy = "declare the class or correct the row"
                raise ConfigError("data.label", config.label, f"row {row} is none of data.classes", remedy)
            targets.append(target)
    owners = None
    if config.unit_column is not None:
        owners = [
            unit_id(value, row, config.unit_column) for row, value in enumerate(cells[config.unit_column], start=1)
        ]
    return Texts(texts, targets, owners)


def read_cells(field: str, path: Path, names: list[str], column: str) -> Cells:
    """Columns of a file or saved data set, by what it is; ``column`` holds texts: an empty one in a csv is None."""
    kind = "folder" if path.is_dir() else path.suffix.lower()
    if kind == "folder":
        return read_dataset_folder(path, field, names)
    if kind == ".parquet":
        return read_parquet_values(path, field, names)
    if kind in (".jsonl", ".ndjson"):
        return read_jsonl(path, field, names)
    read: dict[str, np.ndarray] = read_csv(path, field, names, "\t" if kind == ".tsv" else ",")
    cells: Cells = {name: values.tolist() for name, values in read.items()}
    cells[column] = [value or None for value in cells[column]]  # an empty cell is a missing text
    return cells


def _text(value: Any, row: int, column: str) -> str:
    if value is None:
        raise ConfigError("data.text.column", column, f"row {row} has no text", "fill it or leave the row out")
    if not isinstance(value, str):
        problem = f"row {row} holds {type(value).__name__}, no text"
        raise ConfigError("data.text.column", column, problem, "correct the row, or name another column")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError("data.text.column", column, f"row {row} is no valid Unicode", "correct the row") from error
    return value


def _cell(value: Any, row: int, field: str, name: str) -> str:
    """A label or an id as stripped text: a whole number has no point, truth values read True and False."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, str | bool | int | float):
        return str(value).strip()
    problem = f"row {row} holds {type(value).__name__}, which is no name"
    raise ConfigError(field, name, problem, "give text or whole numbers")


def unit_id(value: Any, row: int, name: str) -> str:
    """A cell of ``data.unit_column`` as text.

    Raises:
        ConfigError: it is missing, so that the row would be nobody's.
    """
    cell = _cell(value, row, "data.unit_column", name)
    if cell in MISSING:
        raise ConfigError("data.unit_column", name, f"row {row} belongs to nobody", "give every row an id")
    return cell
