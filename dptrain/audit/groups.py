"""Groups of units by what is public about their form: class, rows a unit, declared columns. Internal tier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dptrain.data.columns import decode
from dptrain.data.source import Rows, SourceInfo
from dptrain.errors import ConfigError, suggest

CLASS, SIZE = "class", "unit_size"
PARTS = 4
"""Groups that a number is cut into, at its quantiles."""


@dataclass(frozen=True)
class Grouping:
    """One way to sort units."""

    by: str
    group: NDArray[np.int64]
    """(U,) of each unit."""
    names: tuple[str, ...]


def check_groups(info: SourceInfo, wanted: Sequence[str] | None) -> list[str]:
    """Names of the groupings that are made; all there are where none is asked for.

    Raises:
        ConfigError: one that this data does not have.
    """
    known = [CLASS, SIZE, *(info.columns or {})] if info.unit == "user" else [CLASS, *(info.columns or {})]
    for name in wanted or ():
        if name not in known:
            raise ConfigError("audit.groups", name, "is nothing that these rows are sorted by", suggest(name, known))
    return known if wanted is None else list(wanted)


def make_groupings(rows: Rows, info: SourceInfo, wanted: Sequence[str]) -> list[Grouping]:
    """How units fall into groups; a unit's own is that of its first row.

    Args:
        rows: of the units, raw, ids 0 to U - 1 without gaps.
        info: facts about them.
        wanted: of ``check_groups``.
    """
    first = _first_rows(rows)
    made = []
    if CLASS in wanted:
        made.append(Grouping(CLASS, rows.targets[first].numpy().astype(np.int64), tuple(info.class_names)))
    if SIZE in wanted:
        made.append(by_quantile(SIZE, np.bincount(rows.unit_id.numpy(), minlength=len(first)).astype(np.float64)))
    columns = info.columns or {}
    if not columns or not set(columns) & set(wanted):
        return made
    for name, values in decode(rows.inputs[first].reshape(len(first), -1).numpy(), columns).items():
        if name not in wanted:
            continue
        if columns[name].categories is None:
            made.append(by_quantile(name, values))
        else:
            names = (*(columns[name].categories or []), "none of the declared")
            made.append(Grouping(name, np.where(values < 0, len(names) - 1, values), names))
    return made


def by_quantile(by: str, values: NDArray[np.float64]) -> Grouping:
    """At most four groups of near equal size, each named by the least and the largest value in it. Equal values stay
    together, so that of few distinct values there are fewer groups."""
    edges = np.unique(np.quantile(values, np.arange(1, PARTS) / PARTS, method="inverted_cdf"))
    group = np.searchsorted(edges, values, side="left")
    present, dense = np.unique(group, return_inverse=True)
    ends = [(values[dense == k].min(), values[dense == k].max()) for k in range(len(present))]
    names = tuple(f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}" for low, high in ends)
    return Grouping(by, dense.astype(np.int64), names)


def _first_rows(rows: Rows) -> torch.Tensor:
    """(U,) position of each unit's first row."""
    _, first = np.unique(rows.unit_id.numpy(), return_index=True)
    return torch.from_numpy(first)
