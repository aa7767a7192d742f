"""UCI Adult: does a person earn more than 50,000 dollars a year? 1994 census, personal data, binary."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch

from dptrain.config_data import ColumnConfig, DataConfig
from dptrain.data.columns import codes, encode, numbers, width
from dptrain.data.settings import flag, only_uses
from dptrain.data.shipped import locate, read_shipped, shipped
from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.errors import ConfigError
from dptrain.registry import sources

TRAIN_ROWS = 32_561
CLASSES = ("<=50K", ">50K")
NAMES = ("age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship",
         "race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", "income")  # fmt: skip
"""Columns in file order. fnlwgt, a survey weight, is not a feature."""

MIDDLE_AGE = 53.5
"""Middle of the documented range of ages, 17 to 90. Income rises and falls again with age: its square is a feature."""


def _list(text: str) -> ColumnConfig:
    return ColumnConfig(categories=text.split())


COLUMNS: dict[str, ColumnConfig] = {
    "age": ColumnConfig(low=17, high=90),
    "workclass": _list(
        "Private Self-emp-not-inc Self-emp-inc Federal-gov Local-gov State-gov Without-pay Never-worked ?"
    ),
    "education": _list(
        "Bachelors Some-college 11th HS-grad Prof-school Assoc-acdm Assoc-voc 9th 7th-8th 12th Masters 1st-4th 10th "
        "Doctorate 5th-6th Preschool"
    ),
    "education-num": ColumnConfig(low=1, high=16),
    "marital-status": _list(
        "Married-civ-spouse Divorced Never-married Separated Widowed Married-spouse-absent Married-AF-spouse"
    ),
    "occupation": _list(
        "Tech-support Craft-repair Other-service Sales Exec-managerial Prof-specialty Handlers-cleaners "
        "Machine-op-inspct Adm-clerical Farming-fishing Transport-moving Priv-house-serv Protective-serv "
        "Armed-Forces ?"
    ),
    "relationship": _list("Wife Own-child Husband Not-in-family Other-relative Unmarried"),
    "race": _list("White Asian-Pac-Islander Amer-Indian-Eskimo Other Black"),
    "sex": _list("Female Male"),
    "capital-gain": ColumnConfig(low=0, high=99_999),
    "capital-loss": ColumnConfig(low=0, high=4_356),
    "hours-per-week": ColumnConfig(low=1, high=99),
    "native-country": _list(
        "United-States Cambodia England Puerto-Rico Canada Germany Outlying-US(Guam-USVI-etc) India Japan Greece South "
        "China Cuba Iran Honduras Philippines Italy Poland Jamaica Vietnam Mexico Portugal Ireland France "
        "Dominican-Republic Laos Ecuador Taiwan Haiti Columbia Hungary Guatemala Nicaragua Scotland Thailand "
        "Yugoslavia El-Salvador Trinadad&Tobago Peru Hong Holand-Netherlands ?"
    ),
    "age-squared": ColumnConfig(low=0, high=36.5**2),
    "capital-gain-log": ColumnConfig(low=0, high=float(np.log1p(99_999))),
    "capital-loss-log": ColumnConfig(low=0, high=float(np.log1p(4_356))),
}
"""Ranges from the data set's public documentation, values from its published attribute list (adult.names), where
``?`` stands for unknown. The last three are made from others: dollars also count by log(1 + amount)."""


@sources.register("adult")
def adult(config: DataConfig, seed: int, verify: bool = True) -> Source:
    """32,561 people train, the official 16,281 test rows are public. Inputs (110,) in [-1, 1], target 1: over 50K.

    ``verify=False`` accepts files other than the published ones, in the same format.

    Raises:
        ConfigError: files missing; at loading, a file that is not the published one or a row that does not parse.

    Guarantee: bounds and values are constants of this file, so a row's features depend on that row alone.
    """
    only_uses(config, ["path", "public_size"])
    flag("adult", "verify", verify)
    files = locate(config, "adult")
    info = SourceInfo(
        name="adult",
        task="binary",
        input_shape=(width(COLUMNS),),
        num_classes=2,
        public_size=config.public_size or TRAIN_ROWS,
        class_names=CLASSES,
        licence=shipped("adult")["licence"],
        public_split="the official 16,281 test rows",
        is_public=True,
        columns={name: column for name, column in COLUMNS.items() if name in NAMES},
    )

    def read(file: str) -> Rows:
        return _rows(read_shipped(files[file], "adult", verify), files[file])

    return Source(info, lambda: Splits(train=read("adult.data"), public=read("adult.test")))


def _rows(content: bytes, path: Path) -> Rows:
    """Rows of one file. The test file starts with a comment line (``|``) and ends its labels with a point."""
    try:
        text = content.decode("ascii")
    except UnicodeDecodeError as error:
        raise ConfigError("data.path", path, "is not text", "fetch the file again") from error
    lines = [line for line in io.StringIO(text) if line.strip() and not line.startswith("|")]
    records = [line.split(",") for line in lines]
    for number, record in enumerate(records, start=1):
        if len(record) != len(NAMES):
            raise ConfigError(
                "data.path", path, f"row {number} has {len(record)} fields, not {len(NAMES)}", "correct the row"
            )
    if not records:
        raise ConfigError("data.path", path, "holds no row", "fetch the file again")
    table = np.char.strip(np.array(records))  # (N, 15) text
    cells: dict[str, np.ndarray] = {name: table[:, i].astype(object) for i, name in enumerate(NAMES)}
    age = numbers(cells["age"], "data.columns.age")
    cells["age-squared"] = np.square(age - MIDDLE_AGE).astype(object)
    for name in ("capital-gain", "capital-loss"):
        amount = np.clip(numbers(cells[name], f"data.columns.{name}"), 0.0, None)
        cells[f"{name}-log"] = np.log1p(amount).astype(object)
    target = codes(np.char.rstrip(table[:, -1], ".").astype(object), list(CLASSES))
    wrong = np.flatnonzero(target < 0)
    if len(wrong):
        raise ConfigError("data.label", f"row {wrong[0] + 1}", "is neither <=50K nor >50K", f"correct {path}")
    return Rows(torch.from_numpy(encode(cells, COLUMNS)), torch.from_numpy(target))
