"""Whose rows are whose: refuses a promise about records where people repeat, and caps the rows of one user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from dptrain.config_privacy import PrivacyConfig
from dptrain.config_tuning import EvaluationConfig
from dptrain.data.source import Rows, Source, Splits
from dptrain.data.split import split_positions
from dptrain.errors import ConfigError


def check_units(rows: Rows, unit: str, max_rows: int, *, has_user_ids: bool = True) -> None:
    """Refuses rows whose ids contradict the unit that is promised.

    Args:
        rows: private rows; ``unit_id`` names the person wherever the source knows one.
        unit: ``record`` or ``user`` (privacy.unit).
        max_rows: rows kept of one user, at least 1 (privacy.max_rows_per_unit).
        has_user_ids: whether the source says whose rows are whose (``SourceInfo.unit == "user"``).

    Raises:
        ConfigError: unit=user without ids; unit=record while one id has several rows.
    """
    if max_rows < 1:
        raise ConfigError("privacy.max_rows_per_unit", max_rows, "keeps no row", "set it to at least 1")
    if unit == "user" and not has_user_ids:
        raise ConfigError("privacy.unit", "user", "the data does not say whose rows are whose", "set data.unit_column")
    if unit == "record" and len(torch.unique(rows.unit_id)) < len(rows):
        raise ConfigError(
            "privacy.unit",
            "record",
            "values of the unit column repeat, so epsilon would protect a row, not the person",
            "set privacy.unit=user, or leave data.unit_column unset to protect single rows knowingly",
        )


def load_capped(source: Source, privacy: PrivacyConfig, seed: int) -> Splits:
    """A source's rows with those of a unit capped: what training sees, and what an audit must see again.

    Raises:
        ConfigError: as ``check_units``, or what the source refuses.
    """
    splits = source.load()
    known = source.info.unit == "user"
    train = limit_rows(splits.train, privacy.unit, privacy.max_rows_per_unit, seed, has_user_ids=known)
    return replace(splits, train=train, uncapped=splits.train)


CAPS = (1, 2, 4, 8, 16, 32)
"""Caps that ``cap_line`` sets side by side."""


def cap_line(unit_rows: Mapping[int, int] | None, cap: int) -> str:
    """What a cap on the rows of a user leaves of them, in words, from public knowledge alone.

    Args:
        unit_rows: rows a user -> users that bring so many, where that is public.
        cap: rows kept of one user (privacy.max_rows_per_unit).
    """
    if not unit_rows:
        return f"at most {cap} rows of a user; how many that leaves out is private (data.unit_rows declares it)"
    total, users = sum(r * n for r, n in unit_rows.items()), sum(unit_rows.values())
    above = sum(n for r, n in unit_rows.items() if r > cap)

    def kept(most: int) -> int:
        return sum(min(r, most) * n for r, n in unit_rows.items())

    others = ", ".join(f"{most} keeps {kept(most) / total:.0%}" for most in CAPS if most != cap)
    return (
        f"at most {cap} rows of a user: by public counts {kept(cap):,} of {total:,} rows stay "
        f"({kept(cap) / total:.0%}), {above:,} of {users:,} users lose some; {others}"
    )


def cap_table(unit_rows: Mapping[int, int], cap: int) -> list[dict[str, Any]]:
    """What caps on the rows of a user keep, from public counts: 1, 4, 16 and the one that is set.

    Args:
        unit_rows: rows a user -> users that bring so many.
        cap: rows kept of one user (privacy.max_rows_per_unit).

    Returns:
        for each cap: ``kept``, share of the rows; ``users_cut``, share of users who lose some; ``rows_a_user``, mean.
    """
    total, users = sum(r * n for r, n in unit_rows.items()), sum(unit_rows.values())
    found = []
    for most in sorted({1, 4, 16, cap}):
        stay = sum(min(r, most) * n for r, n in unit_rows.items())
        cut = sum(n for r, n in unit_rows.items() if r > most)
        found.append({"cap": most, "kept": stay / total, "users_cut": cut / users, "rows_a_user": stay / users})
    return found


def found_rows(splits: Splits) -> dict[str, Any]:
    """What reading and capping did to the private rows: internal tier, for nothing was added to these counts.

    ``left_out`` rows stand above the cap of their units, of which there are ``units_above_cap``.
    """
    rows, before = splits.train, splits.train if splits.uncapped is None else splits.uncapped
    kept, had = (torch.bincount(part.unit_id) for part in (rows, before))
    cap = int(kept.max()) if len(kept) else 0
    counts = {"units": int((had > 0).sum()), "before_cap": len(before), "kept": len(rows)}
    counts |= {"left_out": len(before) - len(rows), "units_above_cap": int((had > cap).sum())}
    return {**counts, **{name: dict(values) for name, values in (splits.found or {}).items()}}


HOLD_OUT_SEED = 0x5EED
"""Told apart from the split of public rows, so that the two do not fall on the same places."""


def held_out_units(units: int, fraction: float, seed: int) -> np.ndarray:
    """(units,) bool: which units, by position, are held out from training for noisy evaluation.

    Guarantee: as ``split_positions``: no content decides it.
    """
    return split_positions(units, fraction, seed ^ HOLD_OUT_SEED)


def hold_out(rows: Rows, evaluation: EvaluationConfig, seed: int) -> tuple[Rows, Rows | None]:
    """Private rows as (those that train, those held out for noisy evaluation); None held out where none is asked for.

    All rows of a unit go the same way.
    """
    if evaluation.metrics != "dp":
        return rows, None
    held = torch.from_numpy(held_out_units(rows.num_units, evaluation.private_fraction, seed))[rows.unit_id]
    return rows.take(torch.nonzero(~held).flatten()), rows.take(torch.nonzero(held).flatten())


def limit_rows(rows: Rows, unit: str, max_rows: int, seed: int, *, has_user_ids: bool = True) -> Rows:
    """The rows that train: with unit=user at most ``max_rows`` of each user, with unit=record all of them.

    Args:
        rows: private rows in file order.
        unit: ``record`` or ``user``.
        max_rows: rows kept of one user, at least 1.
        seed: fixes which of a user's rows are kept.
        has_user_ids: as in ``check_units``.

    Returns:
        Rows in their old order with dense unit ids; under ``record`` row i is unit i.

    Raises:
        ConfigError: as ``check_units``.

    Guarantee: which rows of a user are kept depends on the seed and on how many rows that user has, on no content
    and on no other user. Taking a user out therefore changes nobody else's rows, which the accounting assumes.
    """
    check_units(rows, unit, max_rows, has_user_ids=has_user_ids)
    if unit == "record":
        return Rows(rows.inputs, rows.targets)
    keep = torch.from_numpy(_kept(rows.unit_id.numpy(), max_rows, seed))
    return rows.take(keep)


def _kept(unit_id: np.ndarray, max_rows: int, seed: int) -> np.ndarray:
    """Positions of the rows kept, ascending."""
    order = np.argsort(unit_id, kind="stable")
    _, start, count = np.unique(unit_id[order], return_index=True, return_counts=True)
    occurrence = np.arange(len(unit_id)) - np.repeat(start, count)  # 0, 1, .. within each unit, in file order
    total = np.repeat(count, count)
    key = _mix(_mix(_mix(np.full(len(unit_id), seed)) ^ total.astype(np.uint64)) ^ occurrence.astype(np.uint64))
    shuffled = np.lexsort((occurrence, key, unit_id[order]))  # still grouped by unit, now in random order inside
    return np.sort(order[shuffled[occurrence < max_rows]])


def _mix(value: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014): a fixed scrambling of 64-bit integers."""
    z = value.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
