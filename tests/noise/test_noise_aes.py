"""AES-256 by torch operations, against the library that the processor's keystream uses and the standard's example."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from dptrain.noise.aes import keystream_words, on_device, round_keys, tables

CPU = torch.device("cpu")


def words(key: bytes, blocks: list[int]) -> np.ndarray:
    found = keystream_words(on_device(round_keys(key), CPU), on_device(tables(), CPU), torch.tensor(blocks))
    return found.numpy()


def library(key: bytes, block: int) -> np.ndarray:
    encryptor = Cipher(algorithms.AES(key), modes.CTR(block.to_bytes(16, "big"))).encryptor()
    return np.frombuffer(encryptor.update(bytes(16)), dtype="<i8")


def test_the_example_of_the_standard() -> None:
    """FIPS 197, appendix A.3 (the expanded key's last word) and SP 800-38A, F.5.5 by its parts."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    expanded = round_keys(key)
    assert [hex(int(w)) for w in expanded[[8, 9, 59]]] == ["0x9ba35411", "0x8e6925af", "0x706c631e"]
    assert bytes(tables()[4, :4].astype(np.uint8)) == bytes.fromhex("637c777b")
    assert sorted(tables()[4].tolist()) == list(range(256))


@given(key=st.binary(min_size=32, max_size=32), blocks=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5))
def test_words_are_those_of_the_library(key: bytes, blocks: list[int]) -> None:
    found = words(key, blocks)
    for own, block in zip(found, blocks, strict=True):
        np.testing.assert_array_equal(own, library(key, block))


def test_the_ends_of_the_counter() -> None:
    blocks = [0, 1, 2**31 - 1, 2**31, 2**32 - 1]
    for own, block in zip(words(bytes(32), blocks), blocks, strict=True):
        np.testing.assert_array_equal(own, library(bytes(32), block))


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes, got 16"):
        round_keys(bytes(16))
