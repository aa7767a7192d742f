"""A user's own table, csv or parquet: every column declared, so that nothing is learnt from private rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from dptrain.config_data import DataConfig
from dptrain.data.columns import MISSING, check_bounds, check_columns, check_distinct, codes, encode, numbers, width
from dptrain.data.read_table import read_csv, read_parquet
from dptrain.data.settings import check_split, existing, needed, only_uses
from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.data.split import split_ids, split_positions
from dptrain.errors import ConfigError
from dptrain.registry import sources

Reader = Callable[[Path, str, Sequence[str], str], dict[str, np.ndarray]]
Cells = dict[str, np.ndarray]
"""Column -> (N,) stripped text."""


@sources.register("csv")
def csv(config: DataConfig, seed: int, separator: str = ",") -> Source:
    """A text table with a header line. Inputs (D,) in [-1, 1] by declared bounds and categories.

    Needs data.path, label, columns, task, classes (or target_low and target_high), public_size, and public_path or
    public_fraction. See docs/data.md.

    Raises:
        ConfigError: a declaration is missing or contradicts itself, a file is missing; at loading, the file is no
            table, a column is missing or a cell cannot be what it was declared to be (row named, content not).
    """
    if not isinstance(separator, str) or len(separator) != 1:
        raise ConfigError("data.options.separator", separator, "is not one character", "set it to ',' ';' or a tab")
    return _source(config, seed, read_csv, separator)


@sources.register("parquet")
def parquet(config: DataConfig, seed: int) -> Source:
    """A parquet file; otherwise as ``csv``."""
    return _source(config, seed, read_parquet, "")


def _source(config: DataConfig, seed: int, reader: Reader, separator: str) -> Source:
    info = _declared(config)
    path = existing("data.path", needed("data.path", config.path, "so there is no table"), "file")
    public_path = None if config.public_path is None else existing("data.public_path", config.public_path, "file")

    def load() -> Splits:
        names = _names(config)
        cells = reader(path, "data.path", names, separator)
        rows, ids = _rows(config, cells, "data.path", path)
        if public_path is None:
            assert config.public_fraction is not None
            if ids is None:
                public = split_positions(len(rows), config.public_fraction, seed)
            else:
                public = split_ids(ids.tolist(), config.public_fraction, seed)
            kept = {name: cells[name][~public] for name in config.columns}
            splits = Splits(train=_part(rows, ~public), public=_part(rows, public), cells=kept)
        else:
            held, held_ids = _rows(
                config, reader(public_path, "data.public_path", names, separator), "data.public_path", public_path
            )
            if ids is not None and held_ids is not None and np.isin(held_ids, ids).any():
                raise ConfigError(
                    "data.public_path", public_path, f"shares values of {config.unit_column} with the private rows",
                    "keep all rows of a unit on one side",
                )  # fmt: skip
            splits = Splits(train=rows, public=held, cells={name: cells[name] for name in config.columns})
        if len(splits.train) < 2:
            raise ConfigError("data.path", path, f"leaves {len(splits.train)} training rows", "give at least two")
        return splits

    return Source(info, load)


def _part(rows: Rows, mask: np.ndarray) -> Rows:
    return rows.take(torch.from_numpy(np.flatnonzero(mask)))


def _names(config: DataConfig) -> list[str]:
    extra = [config.label, config.unit_column]
    return [*config.columns, *(name for name in extra if name is not None)]


def _declared(config: DataConfig) -> SourceInfo:
    """The public facts, out of the declaration alone."""
    used = ["path", "label", "columns", "task", "public_size", "public_path", "public_fraction", "unit_column"]
    used += [] if config.unit_column is None else ["unit_rows"]
    task = needed("data.task", config.task, "so the target has no meaning")
    only_uses(config, [*used, *(["target_low", "target_high"] if task == "regression" else ["classes"])])
    needed("data.label", config.label, "so there is no target")
    needed("data.columns", config.columns, "so there are no features")
    size = needed("data.public_size", config.public_size, "and it is not read off private rows")
    check_columns(config.columns)
    for field, name in (("data.label", config.label), ("data.unit_column", config.unit_column)):
        if name is not None and name in config.columns:
            raise ConfigError(field, name, "is among data.columns too", "leave it out of the features")
    if config.unit_column is not None and config.unit_column == config.label:
        raise ConfigError("data.unit_column", config.unit_column, "is data.label too", "name the column with the ids")
    check_split(config)
    classes: list[str] = []
    if task == "regression":
        low = needed("data.target_low", config.target_low, "so the target has no public bound")
        high = needed("data.target_high", config.target_high, "so the target has no public bound")
        check_bounds("data.target_low", low, high)
    else:
        classes = check_classes(config, task)
    return SourceInfo(
        name=config.name,
        task=task,
        input_shape=(width(config.columns),),
        num_classes=len(classes) or 1,
        public_size=size,
        class_names=tuple(classes),
        unit="record" if config.unit_column is None else "user",
        public_split=describe_split(config, "rows"),
        columns=config.columns,
        unit_rows=None if config.unit_rows is None else {pair[0]: pair[1] for pair in config.unit_rows},
    )


def check_classes(config: DataConfig, task: str) -> list[str]:
    """The declared class names: two for binary, at least two otherwise, none twice. Raises ConfigError."""
    classes = needed("data.classes", config.classes, "and class names are not learnt from private rows")
    check_distinct("data.classes", classes)
    if len(classes) < 2 or (task == "binary" and len(classes) != 2):
        wanted = "two" if task == "binary" else "at least two"
        raise ConfigError("data.classes", classes, f"task {task} has {wanted} classes", "declare every class")
    return [str(name).strip() for name in classes]


def describe_split(config: DataConfig, what: str) -> str:
    """Which rows are public, as a phrase for the statement."""
    if config.public_path is not None:
        return f"{what} of a file declared public"
    by = "units" if config.unit_column is not None else what
    return f"{config.public_fraction:g} of the {by}, set aside by a seeded split that ignores content"


def _rows(config: DataConfig, cells: Cells, field: str, path: Path) -> tuple[Rows, np.ndarray | None]:
    """The rows of one table, and their ids where a unit column is declared. Unit ids count ids in first-seen order."""
    import pandas as pd

    count = len(next(iter(cells.values())))
    if count < (2 if field == "data.path" else 1):
        raise ConfigError(field, path, f"has {count} rows", "give a table with rows")
    inputs = torch.from_numpy(encode(cells, config.columns))
    targets = _targets(config, cells)
    if config.unit_column is None:
        return Rows(inputs, targets), None
    ids = cells[config.unit_column]
    missing = np.flatnonzero(np.isin(ids.astype(str), MISSING))
    if len(missing):
        raise ConfigError(
            "data.unit_column", config.unit_column, f"row {missing[0] + 1} belongs to nobody", "give every row an id"
        )
    return Rows(inputs, targets, torch.from_numpy(pd.factorize(ids)[0].astype(np.int64))), ids


def _targets(config: DataConfig, cells: Cells) -> torch.Tensor:
    """Class indices (N,) int64, or clamped numbers (N,) float32. Raises ConfigError naming the first bad row."""
    assert config.label is not None
    cell = cells[config.label]
    if config.task != "regression":
        target = codes(cell, [str(name) for name in config.classes or []])
        wrong = np.flatnonzero(target < 0)
        problem = "is none of data.classes"
    else:
        assert config.target_low is not None
        assert config.target_high is not None
        value = numbers(cell, "data.label")
        target = np.clip(value, config.target_low, config.target_high).astype(np.float32)
        wrong = np.flatnonzero(np.isnan(value))
        problem = "is missing"
    if len(wrong):
        raise ConfigError(
            "data.label", config.label, f"row {wrong[0] + 1} {problem}", "declare the class or correct the row"
        )
    return torch.from_numpy(target)
