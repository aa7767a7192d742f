"""The keyed stream that draws and noise share: AES-256 in counter mode, keyed by the operating system.

The key is drawn from ``os.urandom`` when the process starts, never written, never printed and never
checkpointed. The counter says what the bytes are for, so that no (key, counter) pair is used twice:

    16 bytes = purpose (2) | rank (2) | step (6) | block within the step (6)

Guarantee: under the assumption that AES-256 is a pseudo-random permutation, all bytes of one key are
indistinguishable from independent uniform bits; asking twice for the same (purpose, step) is refused.
Source: NIST SP 800-38A, section 6.5 (CTR mode).
"""

from __future__ import annotations

import os
from enum import IntEnum

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

_ZEROS = bytes(1 << 18)
"""Plain text to encrypt: the keystream is the encryption of zeros, taken in pieces that stay in cache."""
_ROOM = 16
"""Bytes that the library wants to see behind what it writes (15, as a block of AES has 16)."""


class Purpose(IntEnum):
    """What a part of the stream is for. A number never changes its meaning."""

    DRAW = 1
    NOISE = 2
    NOISE_TIE = 3
    FAST_NOISE_SEED = 4
    FAST_NOISE = 5
    TRIALS = 6
    SELFCHECK = 7
    NOISE_DEVICE = 8


def _zeros(size: int) -> memoryview:
    return memoryview(_ZEROS)[:size]


class Keystream:
    """Random bytes addressed by (purpose, step), each address usable once and in rising order of steps.

    Args:
        rank: the process's rank; ranks that share a key (test mode) still draw different bytes.
        test_key: 32 bytes. For tests of reproducibility only: a run that uses it must stamp itself
            "not private" (``is_private`` is False).
    """

    def __init__(self, rank: int = 0, test_key: bytes | None = None) -> None:
        if test_key is not None and len(test_key) != 32:
            raise ValueError(f"test_key must have 32 bytes, got {len(test_key)}")
        if not 0 <= rank < 1 << 16:
            raise ValueError(f"rank={rank} is not in [0, 65536)")
        self.is_private = test_key is None
        self._rank = rank
        self._cipher = algorithms.AES(test_key if test_key is not None else os.urandom(32))
        self._last_step: dict[Purpose, int] = {}
        self._process = os.getpid()

    def __repr__(self) -> str:
        return f"Keystream(rank={self._rank}, is_private={self.is_private})"

    def __reduce__(self) -> str:
        raise TypeError("a keystream holds a secret key and cannot be pickled or copied")

    def open(self, purpose: Purpose, step: int) -> Stream:
        """The bytes of one (purpose, step). Raises RuntimeError when the address is not fresh."""
        if not 0 <= step < 1 << 48:
            raise ValueError(f"step={step} is not in [0, 2^48)")
        if os.getpid() != self._process:
            raise RuntimeError("this keystream belongs to another process; a forked one would repeat its bytes")
        if step <= self._last_step.get(purpose, -1):
            raise RuntimeError(f"{purpose.name} of step {step} was already drawn; a stream is never used twice")
        self._last_step[purpose] = step
        prefix = purpose.to_bytes(2, "big") + self._rank.to_bytes(2, "big") + step.to_bytes(6, "big")
        return Stream(Cipher(self._cipher, modes.CTR(prefix + bytes(6))))


class Stream:
    """Sequential bytes of one address of a Keystream (at most 2^52 bytes)."""

    def __init__(self, cipher: Cipher[modes.CTR]) -> None:
        self._encryptor = cipher.encryptor()
        self._scratch = bytearray(2 * _ROOM)

    def fill(self, out: np.ndarray) -> np.ndarray:
        """Fills a contiguous array, whatever its dtype, with fresh random bits and returns it."""
        if not out.flags.c_contiguous:
            raise ValueError("only a contiguous array can be filled in place")
        view = memoryview(out.view(np.uint8).reshape(-1))  # pyright: ignore[reportArgumentType]
        done = 0
        while done < len(view):
            left = len(view) - done
            if left > _ROOM:  # into its place, with room behind it that comes later
                size = min(len(_ZEROS), left - _ROOM)
                self._encryptor.update_into(_zeros(size), view[done:])
            else:
                size = left
                self._encryptor.update_into(_zeros(size), self._scratch)
                view[done:] = memoryview(self._scratch)[:size]
            done += size
        return out

    def uint64(self, count: int) -> np.ndarray:
        """``count`` uniform 64-bit integers, shape (count,)."""
        return self.fill(np.empty(count, dtype=np.uint64))
