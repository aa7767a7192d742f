"""The exact path: intervals that hold the truth, and further bits drawn only while they are needed."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from mpmath import iv, mp

from dptrain.keystream import Stream
from dptrain.noise.exact import EXTENSION_WORDS, pair_intervals, rounded_pair

SCALE = 2.0**36


class Script:
    """A stream whose words are written down."""

    def __init__(self, words: list[int]) -> None:
        self.words = words
        self.taken = 0

    def uint64(self, count: int) -> np.ndarray:
        words = self.words[self.taken : self.taken + count]
        self.taken += count
        return np.array(words, dtype=np.uint64)


def scripted(radius: int, angle: int, scale: float, words: list[int]) -> tuple[tuple[float, float], int]:
    script = Script(words)
    return rounded_pair(radius, angle, scale, cast("Stream", script)), script.taken


def ideal(radius: int, angle: int, words: list[int], scale: float) -> tuple[float, float]:
    """The pair for bits continued by all the words, in 900 bits."""
    low, turn = radius & (2**63 - 1), angle
    for first, second in zip(words[::2], words[1::2], strict=True):
        low, turn = (low << 64) | first, (turn << 64) | second
    bits = 32 * len(words)
    with mp.workprec(900):
        uniform = (mp.mpf(low) + 0.5) / mp.mpf(2) ** (63 + bits)
        length = (-1 if radius < 0 else 1) * mp.mpf(scale) * mp.sqrt(-2 * mp.log(uniform))
        phase = mp.pi * (mp.mpf(turn) + 0.5) / mp.mpf(2) ** (64 + bits)
        return float(mp.nint(length * mp.cos(phase))), float(mp.nint(length * mp.sin(phase)))


@pytest.mark.parametrize("radius", [2**63 - 1, 2**63 - 2, 2**63 - 2**20, 1, 2, 0, -1, -(2**63), -(2**62), 2**62])
def test_further_bits_settle_pairs_at_the_ends_of_the_range(radius: int) -> None:
    """Near U = 0 and U = 1 the 63 bits leave the rounding open; the words that follow decide it, for both members."""
    generator = np.random.default_rng(radius & 0xFFFF)
    opened = 0
    for angle in generator.integers(-(2**63), 2**63 - 1, 20):
        words = [int(w) for w in generator.integers(0, 2**64 - 1, 2 * EXTENSION_WORDS, dtype=np.uint64)]
        pair, taken = scripted(radius, int(angle), SCALE, words)
        assert pair == ideal(radius, int(angle), words, SCALE)
        opened += taken
    assert opened > 0 or radius not in (2**63 - 1, -1, 0, -(2**63))


def test_the_answer_follows_the_further_bits() -> None:
    """Two continuations of one undecided pair round differently: the bits are really used."""
    radius, angle = 2**63 - 1, 2**61
    one, _ = scripted(radius, angle, SCALE, [0] * 8)
    other, _ = scripted(radius, angle, SCALE, [2**64 - 1] * 8)
    assert one != other


def test_a_decided_pair_takes_no_bits() -> None:
    assert scripted(2**61 + 12345, 2**60 + 54321, 2.0**20, [])[1] == 0


def test_bits_end_after_the_cap() -> None:
    """All-zero words for U in [0, 2^-319): nothing is decided, and the loop ends."""
    pair, taken = scripted(0, 0, SCALE, [0] * 8)
    assert pair == (0.0, 0.0) and taken == 2 * EXTENSION_WORDS


def test_intervals_hold_both_ends_and_restore_precision() -> None:
    held = iv.prec
    intervals = pair_intervals(2**61 + 5, -(2**62) - 7, 0, 1000.0)
    assert intervals is not None
    cosine, sine = intervals
    assert iv.prec == held
    with mp.workprec(300):
        for k in (2**61 + 5, 2**61 + 6):
            for t in (-(2**62) - 7, -(2**62) - 6):
                length = 1000 * mp.sqrt(-2 * mp.log(mp.mpf(k) / 2**63))
                for interval, value in ((cosine, mp.cos), (sine, mp.sin)):
                    exact: Any = length * value(mp.pi * mp.mpf(t) / 2**64)
                    assert mp.mpf(interval.a._mpi_[0]) <= exact <= mp.mpf(interval.b._mpi_[1])
