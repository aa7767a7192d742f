"""The keystream: nothing used twice, nothing told, AES as the standard has it."""

from __future__ import annotations

import copy
import os
import pickle

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from dptrain.keystream import Keystream, Purpose

KEY = bytes(range(32))


def test_bytes_are_aes_ctr_of_the_stated_address() -> None:
    stream = Keystream(rank=3, test_key=KEY).open(Purpose.NOISE, 7)
    got = stream.fill(np.empty(1000, dtype=np.uint8)).tobytes()
    block = (2).to_bytes(2, "big") + (3).to_bytes(2, "big") + (7).to_bytes(6, "big") + bytes(6)
    expected = Cipher(algorithms.AES(KEY), modes.CTR(block)).encryptor().update(bytes(1000))
    assert got == expected


@given(pieces=st.lists(st.integers(0, 400_000), min_size=1, max_size=5))
def test_pieces_join_to_one_stream(pieces: list[int]) -> None:
    one = Keystream(test_key=KEY).open(Purpose.DRAW, 0)
    parts = b"".join(one.fill(np.empty(n, dtype=np.uint8)).tobytes() for n in pieces)
    whole = Keystream(test_key=KEY).open(Purpose.DRAW, 0).fill(np.empty(sum(pieces), dtype=np.uint8)).tobytes()
    assert parts == whole


def test_an_address_is_used_once_and_steps_only_rise() -> None:
    keys = Keystream()
    keys.open(Purpose.DRAW, 5)
    for step in (5, 4, 0):
        with pytest.raises(RuntimeError, match="never used twice"):
            keys.open(Purpose.DRAW, step)
    keys.open(Purpose.NOISE, 5)
    keys.open(Purpose.DRAW, 6)


@pytest.mark.parametrize("step", [-1, 1 << 48])
def test_steps_outside_the_counter_are_refused(step: int) -> None:
    with pytest.raises(ValueError, match="not in"):
        Keystream().open(Purpose.DRAW, step)


def test_purposes_ranks_steps_and_keys_give_different_bytes() -> None:
    def first(keys: Keystream, purpose: Purpose, step: int) -> int:
        return int(keys.open(purpose, step).uint64(1)[0])

    values = [first(Keystream(rank=r, test_key=KEY), p, s) for r in (0, 1) for p in Purpose for s in (0, 1)]
    values += [first(Keystream(), Purpose.DRAW, 0) for _ in range(4)]
    assert len(set(values)) == len(values)


def test_the_key_is_told_to_nobody() -> None:
    keys = Keystream(test_key=KEY)
    assert KEY.hex() not in repr(keys)
    assert str(list(KEY)) not in repr(keys)
    assert not keys.is_private
    assert Keystream().is_private
    for way in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="secret"):
            way(keys)


def test_bits_are_even() -> None:
    """Ones among 8 million bits: within 5.3 standard deviations (false alarm 1e-7)."""
    words = Keystream().open(Purpose.DRAW, 0).fill(np.empty(1_000_000, dtype=np.uint8))
    ones = int(np.unpackbits(words).sum())
    assert abs(ones - 4_000_000) < 5.33 * (8_000_000**0.5) / 2


def test_an_array_that_cannot_be_filled_in_place_is_refused() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        Keystream().open(Purpose.DRAW, 0).fill(np.empty((4, 6), dtype=np.uint64).T)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_cannot_repeat_the_bytes() -> None:
    keys = Keystream()
    child = os.fork()
    if child == 0:
        try:
            keys.open(Purpose.NOISE, 0)
        except RuntimeError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
