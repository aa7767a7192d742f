"""Settings of the data, and the public facts declared about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dptrain.config_text import TextConfig
from dptrain.errors import ConfigError
from dptrain.ranges import choice as _choice
from dptrain.ranges import number as _number


@dataclass
class ColumnConfig:
    """One column of a table, declared and never learnt: give ``low`` and ``high``, or ``categories``."""

    low: float | None = None
    """Public lower bound; values are clamped to it and mapped to -1."""
    high: float | None = None
    """Public upper bound; values are clamped to it and mapped to +1."""
    categories: list[str] | None = None
    """Public list of values, encoded one-hot; a value outside it encodes as all zeros."""


@dataclass
class DataConfig:
    """Which data, and the public facts about it."""

    name: str = "digits"
    """A registered source: digits, mnist, fashion_mnist, adult, csv, parquet, image_folder or a user's own."""
    path: str | None = None
    """File or folder of the source; shipped sources default to ``data/``."""
    public_size: int | None = None
    """Declared number of training units, at least 2. Sets q; never read off the private rows."""
    public_path: str | None = None
    """File with rows declared public (evaluation). For tables without one: ``public_fraction``."""
    public_fraction: float | None = None
    """Share of rows, in (0, 1), set aside as public evaluation rows by a seeded split that ignores their content."""
    label: str | None = None
    """Column with the target (tables)."""
    classes: list[str] | None = None
    """Declared class names, in order (tables and image folders)."""
    task: str | None = None
    """binary, multiclass, regression, or language (texts: tell the next token); shipped sources know theirs."""
    target_low: float | None = None
    """Regression: public lower bound of the target (clamped)."""
    target_high: float | None = None
    """Regression: public upper bound of the target (clamped)."""
    columns: dict[str, ColumnConfig] = field(default_factory=dict)
    """Feature columns of a table with their declared bounds or categories."""
    unit_column: str | None = None
    """Column that names the user; needed by privacy.unit=user."""
    unit_rows: list[list[int]] | None = None
    """Public knowledge of how rows fall to users, for the plan alone: [[rows, users that bring so many], ...]."""
    image_size: list[int] | None = None
    """Image folders: [channels, height, width] that pictures are converted to."""
    all_public: bool = False
    """Declares that the training rows, too, are public or synthetic: runs on them need no account."""
    text: TextConfig = field(default_factory=TextConfig)
    """How text becomes token ids."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keywords of the source's own function."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("data.name", "''", "is needed with data=own", "give the name that your file registers")
        _number("data.public_size", self.public_size, low=2)
        _number("data.public_fraction", self.public_fraction, low=0, high=1, low_open=True, high_open=True)
        for pair in self.unit_rows or []:
            if len(pair) != 2 or pair[0] < 1 or pair[1] < 0:
                raise ConfigError("data.unit_rows", pair, "is not [rows, users]", "e.g. [[1, 900], [10, 50]]")
        if self.task is not None:
            _choice("data.task", self.task, ["binary", "multiclass", "regression", "language"])
