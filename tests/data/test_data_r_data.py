"""Reading R's data frames: whole numbers and factors come out, everything else is refused in a few words."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dptrain.config_data import DataConfig
from dptrain.data.r_data import NotR, read_frame
from dptrain.registry import sources

REAL = Path(__file__).resolve().parents[2] / "data" / "fertility"
WRITTEN: dict[str, int] = {}


def whole(*values: int) -> bytes:
    return struct.pack(f">{len(values)}i", *values)


def chars(text: str) -> bytes:
    return whole(0x00040009, len(text)) + text.encode()


def strings(*texts: str) -> bytes:
    return whole(16, len(texts)) + b"".join(map(chars, texts))


def symbol(name: str) -> bytes:
    """A name, or the number of the place where it was written before."""
    if name in WRITTEN:
        return whole(0xFF | (WRITTEN[name] << 8))
    WRITTEN[name] = len(WRITTEN) + 1
    return whole(1) + chars(name)


def pair(name: str, value: Callable[[], bytes]) -> bytes:
    return whole(0x402) + symbol(name) + value()


def column(values: list[int], levels: list[str] | None = None) -> bytes:
    if levels is None:
        return whole(13, len(values), *values)
    attributes = pair("levels", lambda: strings(*levels)) + pair("class", lambda: strings("factor")) + whole(254)
    return whole(0x30D, len(values), *values) + attributes


def frame(name: str, columns: dict[str, tuple[list[int], list[str] | None]]) -> bytes:
    """As R saves a data frame: its columns, then their names."""
    WRITTEN.clear()

    def values() -> bytes:
        data = whole(0x313, len(columns)) + b"".join(column(*each) for each in columns.values())
        return data + pair("names", lambda: strings(*columns)) + whole(254)

    return b"RDX2\nX\n" + whole(2, 0x030200, 0x020300) + pair(name, values) + whole(254)


COLUMNS: dict[str, tuple[list[int], list[str] | None]] = {
    "age": ([30, -(2**31), 7], None),
    "sex": ([2, 1, -(2**31)], ["f", "m"]),
    "ill": ([1, 1, 2], ["no", "yes"]),
}


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_numbers_and_factors_come_out_of_every_wrapping(pack: Callable[[bytes], bytes]) -> None:
    read = read_frame(pack(frame("Set", COLUMNS)), "Set")
    assert np.array_equal(read["age"], [30.0, np.nan, 7.0], equal_nan=True)
    assert read["sex"].tolist() == ["m", "f", ""] and read["ill"].tolist() == ["no", "no", "yes"]


def test_what_is_no_data_frame_is_refused() -> None:
    good = frame("Set", COLUMNS)
    cases = {
        "holds no Other": lambda: read_frame(good, "Other"),
        "does not begin": lambda: read_frame(b"hello", "Set"),
        "larger than it may be": lambda: read_frame(bz2.compress(good), "Set", most=50),
        "of kind 3": lambda: read_frame(good[:19] + whole(0x402) + whole(1) + chars("Set") + whole(3, 1), "Set"),
        "levels that are not listed": lambda: read_frame(frame("Set", {"a": ([3], ["x"])}), "Set"),
        "differ in length": lambda: read_frame(frame("Set", {"a": ([3], None), "b": ([1, 2], None)}), "Set"),
    }
    for why, read in cases.items():
        with pytest.raises(NotR, match=why):
            read()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    raw = bytearray(frame("Set", COLUMNS))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(7, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(7, len(raw)))
    for content in (bytes(raw), bytes(raw[:cut])):
        with suppress(NotR):
            read_frame(content, "Set")


def test_the_published_women() -> None:
    if not REAL.is_dir():
        pytest.skip("data/fertility is not here; bash scripts/fetch_data.sh fertility")
    made = sources.build("fertility", DataConfig(name="fertility", path=str(REAL)), 0)
    splits = made.load()
    assert made.info.public_size == len(splits.train) == 203_723 and len(splits.public) == 50_931
    assert tuple(splits.train.inputs.shape[1:]) == made.info.input_shape and splits.train.inputs.abs().max() <= 1.0
    # Angrist and Evans 1998, table 2: 38.1 % of mothers with two children or more have more than two (1980).
    share = float((splits.train.targets.sum() + splits.public.targets.sum()) / 254_654)
    assert share == pytest.approx(0.381, abs=5e-4)
