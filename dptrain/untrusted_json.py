"""Reading JSON that a stranger wrote, within bounds: size, depth, numbers, and no name twice.

Python's reader takes NaN, keeps the last of two equal names, recurses as deep as it is told to and turns a million
digits into a number; a file that is read in two ways can be signed in one and believed in the other.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

LARGEST = 2 << 20
"""Bytes."""
DEEPEST = 32
LONGEST_NUMBER = 40
"""Digits and signs of one number."""


class NotReadable(ValueError):
    """What is wrong with the text, in a few words."""


def read_untrusted(path: Path, largest: int = LARGEST) -> Any:
    """Parses a file of at most ``largest`` bytes.

    Raises:
        NotReadable: it is no such file, or not JSON within bounds.
    """
    if not path.is_file():
        raise NotReadable("is not a file")
    try:
        with path.open("rb") as opened:
            data = opened.read(largest + 1)
    except OSError as error:
        raise NotReadable(f"cannot be read ({error.strerror})") from error
    if len(data) > largest:
        raise NotReadable(f"is larger than {largest} bytes")
    return parse_untrusted(data)


def parse_untrusted(data: bytes) -> Any:
    """Parses JSON in UTF-8. Raises NotReadable: malformed, too deep, a name given twice, or a number out of bounds."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotReadable("is not UTF-8") from error
    _check_depth(text)
    try:
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_integer
        )
    except NotReadable:
        raise
    except (ValueError, RecursionError) as error:
        raise NotReadable(f"is not JSON ({str(error)[:120]})") from error


def _check_depth(text: str) -> None:
    """Counts brackets outside of strings, before the recursive reader sees them."""
    depth, inside, escaped = 0, False, False
    for letter in text:
        if inside:
            inside = escaped or letter != '"'
            escaped = not escaped and letter == "\\"
        elif letter == '"':
            inside = True
        elif letter in "[{":
            depth += 1
            if depth > DEEPEST:
                raise NotReadable(f"is nested deeper than {DEEPEST}")
        elif letter in "]}":
            depth -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        left = set(made)
        for name, _ in pairs:  # counting each name would take hours for a file full of them
            if name not in left:
                raise NotReadable(f"names '{name[:60]}' twice")
            left.discard(name)
    return made


def _constant(name: str) -> Any:
    raise NotReadable(f"holds {name}, which is not JSON")


def _float(text: str) -> float:
    value = float(text) if len(text) <= LONGEST_NUMBER else math.inf
    if not math.isfinite(value):
        raise NotReadable(f"holds the number {text[:40]}, which is out of bounds")
    return value


def _integer(text: str) -> int:
    if len(text) > LONGEST_NUMBER or not -(2**63) <= (value := int(text)) < 2**63:
        raise NotReadable(f"holds the number {text[:40]}, which is out of bounds")
    return value
