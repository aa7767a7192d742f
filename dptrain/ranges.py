"""Ranges of settings, checked when a config becomes an object: one phrase for every refusal."""

from __future__ import annotations

import math
from collections.abc import Iterable

from dptrain.errors import ConfigError, suggest


def number(
    name: str,
    value: float | None,
    *,
    low: float,
    high: float = math.inf,
    low_open: bool = False,
    high_open: bool = False,
    remedy: str = "",
) -> None:
    """Refuses a number outside its range, NaN and infinities included. None passes (not set)."""
    if value is None:
        return
    bracket = f"{'(' if low_open else '['}{low:g}, {high:g}{')' if high_open or math.isinf(high) else ']'}"
    below = value <= low if low_open else value < low
    above = value >= high if high_open else value > high
    if math.isnan(value) or math.isinf(value) or below or above:
        raise ConfigError(
            name, value, f"must be a finite number in {bracket}", remedy or "choose a value in that range"
        )


def choice(name: str, value: str, allowed: Iterable[str]) -> None:
    """Refuses a name that is not among those allowed, with the nearest one as a suggestion."""
    allowed = list(allowed)
    if value not in allowed:
        raise ConfigError(name, value, "is not one of " + ", ".join(allowed), suggest(value, allowed))
