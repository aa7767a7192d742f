"""Noise drawn ahead is the noise itself, once a step."""

from __future__ import annotations

import pytest
import torch

from dptrain.keystream import Keystream
from dptrain.noise.ahead import NoiseAhead
from dptrain.noise.secure import SecureNoise

KEY = bytes(range(32))


def pair() -> tuple[SecureNoise, NoiseAhead]:
    return (SecureNoise(Keystream(test_key=KEY), 1e4), NoiseAhead(SecureNoise(Keystream(test_key=KEY), 1e4)))


def test_the_same_values_begun_or_not() -> None:
    plain, ahead = pair()
    for step, count in ((0, 70_001), (1, 5), (3, 140_000)):
        if step != 1:
            ahead.begin(step, count)
        assert torch.equal(torch.cat(list(ahead.pieces(step, count))), plain.draw(step, count))


def test_a_step_is_drawn_once() -> None:
    _, ahead = pair()
    ahead.begin(0, 10)
    ahead.draw(0, 10)
    with pytest.raises(RuntimeError, match="never used twice"):
        ahead.draw(0, 10)


def test_another_count_than_begun_is_an_error() -> None:
    _, ahead = pair()
    ahead.begin(0, 10)
    with pytest.raises(ValueError, match="begun"):
        ahead.draw(0, 11)


def test_an_error_in_the_thread_reaches_the_loop() -> None:
    _, ahead = pair()
    ahead.begin(2, 10)
    ahead.draw(2, 10)
    ahead.begin(1, 10)
    with pytest.raises(RuntimeError, match="never used twice"):
        ahead.draw(1, 10)
