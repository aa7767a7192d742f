"""AES-256 in counter mode as torch operations, so that a device makes its own keystream.

The usual table form: one round is four look-ups and four exclusive-ors a column (Daemen and Rijmen, The Design of
Rijndael, section 4.2). Look-ups follow secret bytes, so their time may tell of the key to whoever shares the device; a
key is of one step's noise alone, which lies in the same memory. Tested against the library that ``keystream.py`` uses.

Source: FIPS 197 (cipher, key expansion), NIST SP 800-38A, section 6.5 (counter mode).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

ROUNDS = 14
"""Of AES-256."""
WORDS_A_BLOCK = 2
"""64-bit words in a block of 16 bytes."""


def _times_two(byte: int) -> int:
    """Product with x in GF(2^8), FIPS 197 section 4.2.1."""
    return (byte << 1) ^ (0x11B if byte & 0x80 else 0)


def _substitution() -> list[int]:
    """The S-box, FIPS 197 section 5.1.1: the inverse in GF(2^8), then the affine map."""
    powers, logarithm, value = [], [0] * 256, 1
    for exponent in range(255):
        powers.append(value)
        logarithm[value] = exponent
        value ^= _times_two(value)  # times the generator x + 1
    box = [0x63]
    for byte in range(1, 256):
        inverse = powers[-logarithm[byte] % 255]
        turned = inverse
        for _ in range(4):
            inverse = (inverse << 1 | inverse >> 7) & 0xFF
            turned ^= inverse
        box.append(turned ^ 0x63)
    return box


_BOX = _substitution()


def tables() -> np.ndarray:
    """(5, 256) uint32: what a byte in row 0 to 3 of a column adds to the column's next value, then the bare S-box."""
    columns = [(_times_two(s) << 24 | s << 16 | s << 8 | _times_two(s) ^ s) & 0xFFFFFFFF for s in _BOX]
    turned = [[(c >> 8 * row | c << 32 - 8 * row) & 0xFFFFFFFF for c in columns] for row in range(4)]
    return np.array([*turned, _BOX], dtype=np.uint32)


def round_keys(key: bytes) -> np.ndarray:
    """(60,) uint32: the expanded key, four words a round, FIPS 197 section 5.2.

    Raises:
        ValueError: the key has not 32 bytes.
    """
    if len(key) != 32:
        raise ValueError(f"key must have 32 bytes, got {len(key)}")
    words = [int.from_bytes(key[4 * i : 4 * i + 4], "big") for i in range(8)]
    constant = 1
    for i in range(8, 4 * (ROUNDS + 1)):
        word = words[-1]
        if i % 8 == 0:
            word = (word << 8 | word >> 24) & 0xFFFFFFFF
        if i % 4 == 0:
            word = int.from_bytes(bytes(_BOX[b] for b in word.to_bytes(4, "big")), "big")
        if i % 8 == 0:
            word ^= constant << 24
            constant = _times_two(constant)
        words.append(words[i - 8] ^ word)
    return np.array(words, dtype=np.uint32)


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """uint32 values as int32 of the same bits."""
    return torch.from_numpy(values.view(np.int32)).to(device)


def keystream_words(keys: Tensor, lookup: Tensor, blocks: Tensor) -> Tensor:
    """Keystream of the given blocks, where the counter is the block's number, from 0.

    Args:
        keys: (60,) int32, of ``round_keys``.
        lookup: (5, 256) int32, of ``tables``.
        blocks: (n,) int64 block numbers in [0, 2^32).

    Returns:
        (n, 2) int64: each block's 16 bytes as two words whose first byte is the lowest.
    """
    low = torch.where(blocks >= 1 << 31, blocks - (1 << 32), blocks).int()
    zero = torch.zeros_like(low)
    state = [zero ^ keys[0], zero ^ keys[1], zero ^ keys[2], low ^ keys[3]]
    for number in range(1, ROUNDS):
        state = [_mixed(state, column, lookup) ^ keys[4 * number + column] for column in range(4)]
    last = [_substituted(state, column, lookup[4]) ^ keys[4 * ROUNDS + column] for column in range(4)]
    low_half = torch.stack([_reversed_bytes(last[0]), _reversed_bytes(last[2])], dim=1)
    high_half = torch.stack([_reversed_bytes(last[1]), _reversed_bytes(last[3])], dim=1)
    return high_half << 32 | low_half


def _byte(word: Tensor, row: int) -> Tensor:
    """Byte in a row, from the top; (n,) int64 in [0, 256)."""
    return (word >> (24 - 8 * row) & 0xFF).long()


def _mixed(state: list[Tensor], column: int, lookup: Tensor) -> Tensor:
    """SubBytes, ShiftRows and MixColumns for one column."""
    first, second, third, fourth = (lookup[row][_byte(state[(column + row) % 4], row)] for row in range(4))
    return first ^ second ^ third ^ fourth


def _substituted(state: list[Tensor], column: int, box: Tensor) -> Tensor:
    """SubBytes and ShiftRows for one column."""
    rows = [box[_byte(state[(column + row) % 4], row)] for row in range(4)]
    return rows[0] << 24 | rows[1] << 16 | rows[2] << 8 | rows[3]


def _reversed_bytes(word: Tensor) -> Tensor:
    """int32 -> int64 in [0, 2^32), the bytes in the other order."""
    wide = word.long()
    return (wide & 0xFF) << 24 | (wide & 0xFF00) << 8 | (wide >> 8 & 0xFF00) | (wide >> 24 & 0xFF)
