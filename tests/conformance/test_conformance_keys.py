"""Keys with too little chance in them are found, wherever it is lost; honest ones are not, at the level stated."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import algorithms

from dptrain.conformance import keys
from dptrain.conformance.keys import first_words, keys_differ
from dptrain.keystream import Keystream


def test_honest_keys_pass() -> None:
    """False alarms: 1e-7."""
    state, other = random.getstate(), torch.random.get_rng_state()
    assert keys_differ().passed
    assert random.getstate() == state and torch.equal(torch.random.get_rng_state(), other)


def test_honest_keys_pass_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "KEYS", 500)
    monkeypatch.setattr(keys, "_of_forks", lambda: [first_words(10)])
    assert all(keys_differ().passed for _ in range(200))


def _generator() -> Any:
    held = np.random.default_rng(int.from_bytes(os.urandom(16), "big"))
    return lambda: held.bytes(32)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: os.urandom(2), "come twice"),
        (lambda: (int.from_bytes(os.urandom(4), "big") >> 4).to_bytes(4, "big"), "come twice"),
        (lambda: torch.randint(2**62, (1,)).numpy().tobytes(), "a fork"),
        (lambda: torch.randint(2**62, (1,)).numpy().tobytes() + str(os.getpid()).encode(), "one seed"),
        (lambda: random.randbytes(32), "one seed"),
        (_generator(), "a fork"),
    ],
    ids=[
        "16 bits",
        "28 bits",
        "torch's generator",
        "the same in every process",
        "Python's generator",
        "a generator of its own",
    ],
)
def test_poor_keys_are_found(make: Callable[[], bytes], named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 28 bits are missed but once in 10^15 runs."""
    original = Keystream.__init__

    def built(self: Any, rank: int = 0, test_key: bytes | None = None) -> None:
        original(self, rank, test_key)
        self._cipher = algorithms.AES(hashlib.sha256(make()).digest())

    monkeypatch.setattr(Keystream, "__init__", built)
    found = keys_differ()
    assert found.passed is False and named in found.says


def test_bits_that_lean_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = keys.first_words
    monkeypatch.setattr(keys, "first_words", lambda count: _leaning(original(count)))
    found = keys_differ()
    assert found.passed is False and "bit 5 " in found.says


def _leaning(words: np.ndarray) -> np.ndarray:
    """Bit 5 is 0 in one word more of twenty."""
    words[::20] &= ~np.uint64(1 << 5)
    return words
