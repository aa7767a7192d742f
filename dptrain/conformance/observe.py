"""Watching a run's parts without standing in their place: noise and draws tell what they gave, and stay what they are.

A part that is wrapped looks like another part: code that asks for its class, or reaches into it, would take another
way, and the check would see that way. So noise is told to report on the instance itself, a draw through a callable that
answers for everything else as the sampler's own, and the key stream where all random bits come from, whoever asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dptrain.keystream import Keystream, Purpose, Stream

NOISE = (Purpose.NOISE, Purpose.NOISE_DEVICE, Purpose.FAST_NOISE, Purpose.FAST_NOISE_SEED)
"""What one vector of noise may be made of; ``NOISE_TIE`` decides a few of its values."""


def least_bytes(purpose: Purpose, count: int) -> int:
    """Random bytes that noise of so many values must be made of: 32 bits a value, or a whole key for a device."""
    return 32 if purpose is Purpose.NOISE_DEVICE else 4 * count


class Told:
    """A function that reports what it gave, and in all else is the function within, of a sampler say.

    Args:
        inner: the function.
        tell: called with its argument and its value.
    """

    def __init__(self, inner: Callable[[int], Any], tell: Callable[[int, Any], None]) -> None:
        self._inner, self._tell = inner, tell

    def __call__(self, step: int) -> Any:
        value = self._inner(step)
        self._tell(step, value)
        return value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def tell_noise(noise: Any, tell: Callable[[int, Tensor], None]) -> None:
    """Every vector that this source gives from now on is reported, once it is whole: (step, (D,) float64).

    Args:
        noise: a run's own source. It is not replaced: its methods are, on this instance.
        tell: called before the last piece is used.
    """
    draw, pieces = noise.draw, noise.pieces
    within = [0]  # a vector may be made of pieces, and pieces of a vector: it is one

    def told_draw(step: int, count: int) -> Tensor:
        within[0] += 1
        try:
            vector = draw(step, count)
        finally:
            within[0] -= 1
        if not within[0]:
            tell(step, vector.double().cpu().clone())
        return vector

    def told_pieces(step: int, count: int) -> Iterator[Tensor]:
        within[0] += 1
        try:
            given = pieces(step, count)
        finally:
            within[0] -= 1
        return given if within[0] else told(step, count, given)

    def told(step: int, count: int, given: Iterator[Tensor]) -> Iterator[Tensor]:
        kept: list[Tensor] = []
        for piece in given:
            kept.append(piece.double().cpu().clone())
            if sum(len(k) for k in kept) >= count:
                tell(step, torch.cat(kept))
            yield piece

    noise.draw, noise.pieces = told_draw, told_pieces


@dataclass(frozen=True)
class Opened:
    """An address of a key stream that was opened, and how many bytes were read of it since."""

    keys: int
    """Which key stream it was, by number."""
    purpose: Purpose
    step: int
    read: list[int]


@contextmanager
def fills(tell: Callable[[Stream, np.ndarray], None]) -> Iterator[None]:
    """Whatever a key stream fills inside is told, with the stream, once it is filled; as it was behind."""
    real = Stream.fill

    def fill(self: Stream, out: Any) -> Any:
        filled = real(self, out)
        tell(self, filled)
        return filled

    Stream.fill = fill  # type: ignore[method-assign]
    try:
        yield
    finally:
        Stream.fill = real  # type: ignore[method-assign]


@contextmanager
def addresses() -> Iterator[list[Opened]]:
    """Every address that any key stream opens inside, in order; put back as it was behind."""
    opened, known = list[Opened](), list[Keystream]()
    by_stream: dict[int, tuple[Stream, Opened]] = {}
    real_open = Keystream.open

    def told_open(self: Keystream, purpose: Purpose, step: int) -> Stream:
        stream = real_open(self, purpose, step)
        number = next((i for i, one in enumerate(known) if one is self), len(known))
        if number == len(known):
            known.append(self)
        one = Opened(number, purpose, step, [])
        opened.append(one)
        by_stream[id(stream)] = (stream, one)  # held, so that no other gets its number
        return stream

    def on_fill(stream: Stream, filled: np.ndarray) -> None:
        if id(stream) in by_stream:
            by_stream[id(stream)][1].read.append(int(filled.nbytes))

    Keystream.open = told_open  # type: ignore[method-assign]
    try:
        with fills(on_fill):
            yield opened
    finally:
        Keystream.open = real_open  # type: ignore[method-assign]
