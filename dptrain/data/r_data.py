"""Reads a data frame of R out of an ``.rda`` file: numbers and factors, in R's XDR serialisation.

The format is that of "R Internals", section 1.8 (serialization formats). Nothing but vectors, lists and names is read;
anything else (code, environments) is refused.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

MISSING = np.int32(-(2**31))
"""How R writes a whole number, or a factor's level, that is not there."""
SYMBOL, PAIRS, STRING, LOGICAL, INTEGER, REAL, STRINGS, LIST, NIL, REFERENCE = 1, 2, 9, 10, 13, 14, 16, 19, 254, 255
DEEPEST = 50


class NotR(ValueError):
    """Bytes that are no data frame of the kind read here."""


@dataclass
class Value:
    """An R value and its attributes."""

    data: Any
    attributes: dict[str, Value]


def read_frame(content: bytes, name: str, most: int = 1 << 30) -> dict[str, np.ndarray]:
    """Columns of the data frame ``name``: column -> (N,) numbers, or text for a factor's levels ("" where missing).

    Args:
        content: of the file, compressed by gzip, bzip2 or xz, or plain.
        name: of the data frame.
        most: bytes that it may unpack to.

    Raises:
        NotR: it is something else.
    """
    try:
        plain = _unpacked(content, most)
        if plain[:7] not in (b"RDX2\nX\n", b"RDX3\nX\n"):
            raise NotR("does not begin as R's data do")
        reader = _Reader(plain[7:])
        found = reader.begin().attributes
    except (OSError, EOFError, zlib.error, lzma.LZMAError, IndexError, ValueError) as error:
        raise error if isinstance(error, NotR) else NotR("is cut short or damaged") from error
    if name not in found:
        raise NotR(f"holds no {name}")
    return _columns(found[name])


def _unpacked(content: bytes, most: int) -> bytes:
    if content[:2] == b"\x1f\x8b":
        made: Any = zlib.decompressobj(wbits=31)
    elif content[:3] == b"BZh":
        made = bz2.BZ2Decompressor()
    elif content[:6] == b"\xfd7zXZ\x00":
        made = lzma.LZMADecompressor()
    else:
        return content
    plain = made.decompress(content, most)
    if not made.eof:
        raise NotR("is cut short, or larger than it may be")
    return plain


def _columns(frame: Value) -> dict[str, np.ndarray]:
    names = frame.attributes.get("names")
    if not isinstance(frame.data, list) or names is None or len(names.data) != len(frame.data):
        raise NotR("is no data frame")
    columns: dict[str, np.ndarray] = {}
    for name, value in zip(names.data, frame.data, strict=True):
        levels = value.attributes.get("levels")
        if not isinstance(value.data, np.ndarray):
            raise NotR(f"column {name} is neither numbers nor a factor")
        if levels is None:
            columns[name] = np.where(value.data == MISSING, np.nan, value.data.astype(np.float64))
        else:
            code = np.where(value.data == MISSING, 0, value.data)
            if code.min(initial=0) < 0 or code.max(initial=0) > len(levels.data):
                raise NotR(f"column {name} has levels that are not listed")
            columns[name] = np.array(["", *levels.data], dtype=object)[code]
    if len({len(column) for column in columns.values()}) != 1:
        raise NotR("is no data frame: its columns differ in length")
    return columns


class _Reader:
    """Walks through the serialised values."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0
        self.symbols: list[str] = []

    def begin(self) -> Value:
        version = self.whole()
        self.at += 8
        if version == 3:
            self.at += self.whole()  # the name of an encoding
        elif version != 2:
            raise NotR(f"is of version {version}")
        return self.value(0)

    def whole(self) -> int:
        part = self.bytes(4)
        return int.from_bytes(part, "big", signed=True)

    def bytes(self, count: int) -> bytes:
        if count < 0 or self.at + count > len(self.content):
            raise NotR("is cut short")
        part = self.content[self.at : self.at + count]
        self.at += count
        return part

    def value(self, depth: int) -> Value:
        if depth > DEEPEST:
            raise NotR("is nested too deeply")
        flags = self.whole()
        kind, has_attributes, has_tag = flags & 0xFF, bool(flags & 0x200), bool(flags & 0x400)
        if kind == PAIRS:
            return self.pairs(has_attributes, has_tag, depth)
        if kind == NIL:
            return Value(None, {})
        if kind == REFERENCE:
            return Value(self.symbols[(flags >> 8) - 1], {})
        if kind == SYMBOL:
            self.symbols.append(str(self.value(depth + 1).data))
            return Value(self.symbols[-1], {})
        data = self.vector(kind, depth)
        attributes = self.value(depth + 1).attributes if has_attributes else {}
        return Value(data, attributes)

    def vector(self, kind: int, depth: int) -> Any:
        length = self.whole()
        if kind == STRING:
            return "" if length == -1 else self.bytes(length).decode("utf-8", "replace")
        if kind in (INTEGER, LOGICAL):
            return np.frombuffer(self.bytes(4 * length), dtype=">i4").astype(np.int32)
        if kind == REAL:
            return np.frombuffer(self.bytes(8 * length), dtype=">f8").astype(np.float64)
        if kind in (STRINGS, LIST) and 0 <= length <= len(self.content):
            found = [self.value(depth + 1) for _ in range(length)]
            return [value.data for value in found] if kind == STRINGS else found
        raise NotR(f"holds a value of kind {kind}")

    def pairs(self, has_attributes: bool, has_tag: bool, depth: int) -> Value:
        """A chain of tagged values, as the attributes of a value that has no data."""
        found: dict[str, Value] = {}
        while True:
            if has_attributes:
                self.value(depth + 1)
            tag = str(self.value(depth + 1).data) if has_tag else ""
            found[tag] = self.value(depth + 1)
            flags = self.whole()
            if flags & 0xFF == NIL:
                return Value(None, found)
            if flags & 0xFF != PAIRS:
                raise NotR("holds a broken list")
            has_attributes, has_tag = bool(flags & 0x200), bool(flags & 0x400)
