"""What a data source is: public facts that the plan may use, and a function that loads the rows.

The facts are declared before any private row is read. A user's own source in full:

    from dptrain.data.source import Rows, Source, SourceInfo, Splits
    from dptrain.registry import sources

    @sources.register("mine")
    def mine(config, seed):
        info = SourceInfo(name="mine", task="binary", input_shape=(4,), num_classes=2, public_size=1000)
        return Source(info, load=lambda: Splits(train=Rows(x, y), public=Rows(x_public, y_public)))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dptrain.config_data import ColumnConfig

TOKENS = "token_classification"
"""The task of telling a class of every token: a row's targets are (T,), IGNORED where a token has none."""
IGNORED = -100
"""Target of a token without a label, as in torch and transformers."""


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """Public facts about a source. Nothing here may be derived from private rows."""

    name: str
    task: str
    """binary, multiclass, regression, language (the next token; the target is how many tokens there are to tell), or
    token_classification (a class a token)."""
    input_shape: tuple[int, ...]
    """Shape of one row's input, without the batch dimension."""
    num_classes: int
    """Number of classes; 1 for regression."""
    public_size: int
    """Declared number of training units: fixes the sampling rate."""
    class_names: tuple[str, ...] = ()
    unit: str = "record"
    """record, or user where rows carry a unit_id that groups them."""
    licence: str = "not stated"
    public_split: str = "the source's test rows"
    """Which rows are public (evaluation, attack non-members), as a phrase."""
    is_public: bool = False
    """Whether the training rows, too, are public or synthetic, so that nobody's budget is spent."""
    vocabulary: int | None = None
    """Rows are token ids in 0..vocabulary-1; None where they are numbers."""
    pad: int | None = None
    """Id that fills a row of tokens behind its end."""
    unit_rows: Mapping[int, int] | None = None
    """Rows a unit -> number of units that bring so many, where that is public; None where it is not."""
    columns: Mapping[str, ColumnConfig] | None = None
    """Declared columns that a row's input begins with, as ``columns.encode`` lays them out; None where it does not."""

    @property
    def num_outputs(self) -> int:
        """Width of the model's output: one logit for binary, one value for regression, T times the classes for
        token_classification."""
        if self.task == TOKENS:
            return self.input_shape[0] * self.num_classes
        return self.num_classes if self.task == "multiclass" else 1


@dataclass(frozen=True)
class Rows:
    """Rows in memory. Row i belongs to unit ``unit_id[i]``."""

    inputs: Tensor  # (N, *input_shape) float32, or int64 token ids
    targets: Tensor  # (N,) int64 class index (0/1 for binary) or number of tokens to tell, float32 for regression;
    # (N, T) int64 class or IGNORED for token_classification
    unit_id: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """(N,) int64 in 0..num_units-1; left out, every row is its own unit."""

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ValueError(f"{len(self.inputs)} inputs but {len(self.targets)} targets")
        if self.unit_id.numel() == 0 and len(self.inputs) > 0:
            object.__setattr__(self, "unit_id", torch.arange(len(self.inputs)))
        if len(self.unit_id) != len(self.inputs):
            raise ValueError(f"{len(self.inputs)} inputs but {len(self.unit_id)} unit ids")

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def num_units(self) -> int:
        """Number of units: one more than the largest unit id."""
        return int(self.unit_id.max()) + 1 if len(self) else 0

    def take(self, index: Tensor) -> Rows:
        """The rows at ``index`` with their unit ids renumbered densely from 0, order of first id kept."""
        _, unit_id = torch.unique(self.unit_id[index], return_inverse=True)
        return Rows(self.inputs[index], self.targets[index], unit_id)


@dataclass(frozen=True)
class Splits:
    """Training rows (private: the members) and public rows (evaluation; the attack's non-members)."""

    train: Rows
    public: Rows
    validation: Rows | None = None
    """Private rows held out from training for noisy evaluation; a source leaves it None."""
    cells: Mapping[str, np.ndarray] | None = None
    """Tables: column -> (N,) text of the training rows before it was encoded, for the gate alone."""
    uncapped: Rows | None = None
    """The training rows before any of a unit was left out (``units.load_capped``), for the gate alone."""
    found: Mapping[str, Mapping[str, int | float]] | None = None
    """What reading found about the private rows (how many were cut off, say), for the internal room alone."""


@dataclass(frozen=True)
class Source:
    """A data source: its public facts, and ``load``, the only thing that reads rows."""

    info: SourceInfo
    load: Callable[[], Splits]
