"""Numbers in words, the same on the page and on the terminal. A promise is never rounded in its own favour."""

from __future__ import annotations

import math
import re
from typing import Any, TypeGuard

MISSING = "not available"
PERCENT = "\u00a0%"  # a number and its sign stay on one line


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value read from a file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def plain(value: Any, digits: int = 4) -> str:
    """A number with so many significant digits; whole numbers in full."""
    if not is_number(value):
        return MISSING
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return small(value) if abs(value) < 1e-4 else f"{value:.{digits}g}"


def small(value: Any) -> str:
    """A tiny number the way settings are written: ``1e-5``, ``2.5e-6``."""
    if not is_number(value):
        return MISSING
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:g}"
    mantissa, exponent = f"{value:.5e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def epsilon_up(value: Any) -> str:
    """Epsilon with three decimals, rounded up."""
    if not is_number(value):
        return MISSING
    text = f"{math.ceil(value * 1000) / 1000:.3f}".rstrip("0").rstrip(".")
    return text


def percent(value: Any, digits: int = 1) -> str:
    """A share as a percentage: 0.873 is ``87.3 %``."""
    return f"{100 * value:.{digits}f}{PERCENT}" if is_number(value) else MISSING


def rate(value: Any) -> str:
    """A false-positive rate as a percentage without needless zeros: 0.001 is ``0.1 %``."""
    return f"{100 * value:g}{PERCENT}" if is_number(value) else MISSING


def interval(entry: Any, as_percent: bool) -> str:
    """``0.512 [0.471, 0.553]`` from value, low and high; the value alone where there is no interval."""
    if not isinstance(entry, dict):
        return MISSING
    value = entry.get("value", entry.get("tpr"))
    if not is_number(value):
        return MISSING
    show = percent if as_percent else (lambda x: f"{x:.3f}")
    if not (is_number(entry.get("low")) and is_number(entry.get("high"))):
        return show(value)
    return f"{show(value)} [{show(entry['low'])},\u00a0{show(entry['high'])}]"


def printable(text: str) -> str:
    """Without control and direction characters, which could rewrite a terminal or break a drawing."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]", " ", text)


def duration(seconds: Any) -> str:
    """Seconds as people say them."""
    if not is_number(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
