"""What rows are compared with: shapes, bounds, missing values, shares of classes, repeats, rows of one unit.

Every check takes time linear in the rows, and none learns a threshold from them: both sides of the comparison are
declared. What a check finds is computed from private rows and belongs to the internal tier.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dptrain.data.source import IGNORED, TOKENS, Rows, SourceInfo

STRIDE = 4096
"""Rows looked at together, so that a copy of all rows is never made."""
SKETCH = 128
"""Values of a row that tell it from most others."""


@dataclass(frozen=True)
class Check:
    """One thing that was declared, and whether the rows keep to it. Its name may be shown; the rest is internal."""

    name: str
    passed: bool
    declared: Any
    found: Any

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def schema(rows: Rows, info: SourceInfo) -> Check:
    """Inputs have the declared shape; classes lie in 0..K-1, token ids in the vocabulary; regressions are finite."""
    declared = {"input_shape": list(info.input_shape), "task": info.task, "classes": info.num_classes}
    targets = rows.targets
    if info.task == "regression":
        wrong = ~torch.isfinite(targets) if targets.is_floating_point() else torch.zeros_like(targets, dtype=torch.bool)
    elif targets.is_floating_point():
        wrong = torch.ones_like(targets, dtype=torch.bool)
    elif info.task == "language":
        wrong = (targets < 0) | (targets >= info.input_shape[0])
    elif info.task == TOKENS:
        wrong = (((targets < 0) & (targets != IGNORED)) | (targets >= info.num_classes)).flatten(1).any(dim=1)
    else:
        wrong = (targets < 0) | (targets >= max(info.num_classes, 2))
    if info.vocabulary is not None:
        ids = rows.inputs.flatten(1)
        wrong = wrong | (ids < 0).any(dim=1) | (ids >= info.vocabulary).any(dim=1)
    found = {"input_shape": list(rows.inputs.shape[1:]), "targets_outside": int(wrong.sum())}
    passed = found["input_shape"] == declared["input_shape"] and found["targets_outside"] == 0
    return Check("schema", passed, declared, found)


def inputs(rows: Rows, low: float | None, high: float | None, most_outside: float | None, most_null: float | None
           ) -> list[Check]:  # fmt: skip
    """Checks ``ranges`` (share of rows with a value outside [low, high]) and ``nulls`` (share of rows with a NaN), in
    one pass over the values; each only where something was declared for it.

    A row with a NaN counts as null, not as outside; an infinity is outside of every bound.
    """
    bounded = low is not None or high is not None
    if not bounded and most_null is None:
        return []
    outside, null = 0, 0
    for part in torch.split(rows.inputs.flatten(1), STRIDE):
        if _lies_within(part, low, high):
            continue  # several times as quick, and most parts are good
        least, largest = torch.aminmax(part, dim=1)  # (R,) each; a NaN in a row carries over to both
        bad = torch.zeros_like(least, dtype=torch.bool)
        if low is not None:
            bad |= least < low
        if high is not None:
            bad |= largest > high
        outside += int(bad.sum())
        null += int(torch.isnan(least).sum()) if part.is_floating_point() else 0
    count = max(len(rows), 1)
    made = []
    if bounded:
        most = most_outside or 0.0
        declared = {"low": low, "high": high, "max_outside_share": most}
        made.append(Check("ranges", outside / count <= most, declared, {"outside_share": outside / count}))
    if most_null is not None:
        share = null / count
        made.append(Check("nulls", share <= most_null, {"max_null_share": most_null}, {"null_share": share}))
    return made


def _lies_within(part: Tensor, low: float | None, high: float | None) -> bool:
    """Whether no value is a NaN or outside; a NaN, once met, is both extremes and fails every comparison."""
    if part.numel() == 0:
        return True
    least, largest = (float(extreme) for extreme in torch.aminmax(part))
    return not math.isnan(least) and (low is None or least >= low) and (high is None or largest <= high)


def labels(rows: Rows, reference: list[float], most: float) -> Check:
    """Total variation distance (half the sum of absolute differences) between the rows' class shares and the reference.

    Class indices outside 0..K-1 are in no class, so their whole share counts as distance.
    """
    known = rows.targets[(rows.targets >= 0) & (rows.targets < len(reference))].long()
    shares = torch.bincount(known, minlength=len(reference)).double() / max(len(rows), 1)  # (K,)
    stray = 1.0 - float(shares.sum())
    distance = 0.5 * (float((shares - torch.tensor(reference, dtype=torch.float64)).abs().sum()) + stray)
    declared = {"label_reference": list(reference), "max_label_distance": most}
    return Check("labels", distance <= most, declared, {"distance": distance, "shares": shares.tolist()})


def duplicates(rows: Rows, most: float) -> Check:
    """Share of rows whose input and target, byte for byte, occurred in a row before.

    Linear and exact: rows are told apart by a sketch of some of their values, and those that share one by a hash of all
    their bytes (SHA-256 cut to 128 bits), so that nobody can write rows that collide. Copies that differ in one bit are
    no repeats to it.
    """
    import pandas as pd

    twins = np.flatnonzero(pd.Series(_sketches(rows)).duplicated(keep=False).to_numpy())
    seen: set[tuple[bytes, bytes]] = set()
    for start in range(0, len(twins), STRIDE):
        index = torch.from_numpy(twins[start : start + STRIDE])
        part = zip(_bytes(rows.inputs[index]), _bytes(rows.targets[index]), strict=True)
        seen.update((hashlib.sha256(row).digest()[:16], bytes(target)) for row, target in part)
    share = (len(twins) - len(seen)) / max(len(rows), 1)
    return Check("duplicates", share <= most, {"max_duplicate_share": most}, {"duplicate_share": share})


def unit_rows(rows: Rows, most: int) -> Check:
    """No unit brings more rows than declared, counted before any are left out."""
    counts = torch.unique(rows.unit_id, return_counts=True)[1]
    found = {"largest": int(counts.max()) if len(counts) else 0, "units_above": int((counts > most).sum())}
    return Check("unit_rows", found["units_above"] == 0, {"max_rows_per_unit": most}, found)


def _sketches(rows: Rows) -> np.ndarray:
    """(N,) uint64: equal for equal rows, and seldom for others: at most ``SKETCH`` values of a row, and its first
    target, each times a constant of its own, summed modulo 2^64."""
    words = _words(rows.inputs)  # (N, W)
    generator = np.random.default_rng(0)
    chosen = np.sort(generator.permutation(words.shape[1])[:SKETCH])
    factors = generator.integers(1, 2**64, size=len(chosen) + 1, dtype=np.uint64) | np.uint64(1)
    made = _words(rows.targets[:, None].flatten(1)[:, :1])[:, 0].astype(np.uint64) * factors[-1]
    for start in range(0, len(rows), STRIDE):
        part = words[start : start + STRIDE, chosen].astype(np.uint64)
        made[start : start + STRIDE] += (part * factors[:-1]).sum(axis=1, dtype=np.uint64)
    return made ^ (made >> np.uint64(32))


def _words(part: Tensor) -> np.ndarray:
    """(N, W) unsigned integers: each value's bits."""
    flat = part.detach().cpu().contiguous().flatten(1).numpy()
    return flat.view(f"u{flat.dtype.itemsize}")


def _bytes(part: Tensor) -> list[memoryview]:
    """Each row's bytes; ``part`` is copied at most once."""
    whole = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    width = len(whole) // max(len(part), 1)
    return [whole[row * width : (row + 1) * width] for row in range(len(part))]
