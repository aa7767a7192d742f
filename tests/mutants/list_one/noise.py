"""Mistakes in the noise and in the key stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dptrain import keystream
from dptrain.gradients.draw_sum import DrawSum
from dptrain.keystream import Keystream, Purpose
from dptrain.noise.fast import FastNoise
from dptrain.noise.secure import SecureNoise
from dptrain.training import assemble
from dptrain.training.loop import Trainer

from .shared import FAST, Mutant, Patch


def scaled_noise(factor: float) -> Callable[[Patch], None]:
    def apply(patch: Patch) -> None:
        for kind in (SecureNoise, FastNoise):
            original = kind.__init__

            def quiet(self: Any, stream: Any, std: float, *rest: Any, _as: Any = original, **named: Any) -> None:
                _as(self, stream, std * factor, *rest, **named)

            patch(kind, "__init__", quiet)

    return apply


def changed_noise(change: Callable[[list[Tensor], int], list[Tensor]]) -> Callable[[Patch], None]:
    """The noise of each step, in pieces, becomes ``change(pieces, step)``."""

    def apply(patch: Patch) -> None:
        original = SecureNoise.pieces

        def pieces(self: Any, step: int, count: int) -> Iterator[Tensor]:
            return iter(change([piece.clone() for piece in original(self, step, count)], step))

        patch(SecureNoise, "pieces", pieces)

    return apply


def noise_zero(pieces: list[Tensor], step: int) -> list[Tensor]:
    return [torch.zeros_like(piece) for piece in pieces]


def noise_one_value(pieces: list[Tensor], step: int) -> list[Tensor]:
    return [torch.full_like(piece, float(pieces[0][0])) for piece in pieces]


def noise_uniform(pieces: list[Tensor], step: int) -> list[Tensor]:
    std = float(torch.cat(pieces).std())
    return [((torch.rand_like(piece) - 0.5) * std * 12**0.5).round() for piece in pieces]


def noise_laplace(pieces: list[Tensor], step: int) -> list[Tensor]:
    std = float(torch.cat(pieces).std())
    law = torch.distributions.Laplace(0.0, std / 2**0.5)
    return [law.sample(piece.shape).double().round() for piece in pieces]


def noise_mirrored(pieces: list[Tensor], step: int) -> list[Tensor]:
    whole = torch.cat(pieces)
    half = len(whole) // 2
    whole[half : 2 * half] = -whole[:half]
    return [whole]


def noise_missing_in_last(pieces: list[Tensor], step: int) -> list[Tensor]:
    whole = torch.cat(pieces)
    whole[-10:] = 0.0
    return [whole]


def noise_cut(pieces: list[Tensor], step: int) -> list[Tensor]:
    whole = torch.cat(pieces)
    limit = 1.5 * float(whole.std())
    return [whole.clamp(-limit, limit).round()]


def noise_same_every_step(patch: Patch) -> None:
    original = SecureNoise.pieces

    def pieces(self: Any, step: int, count: int) -> Iterator[Tensor]:
        fresh = SecureNoise(Keystream(test_key=bytes(32)), self.scale)
        return original(fresh, 1, count)

    patch(SecureNoise, "pieces", pieces)


def noise_every_other_step(patch: Patch) -> None:
    original, held = SecureNoise.pieces, dict[int, Tensor]()

    def pieces(self: Any, step: int, count: int) -> Iterator[Tensor]:
        fresh = torch.cat([piece.clone() for piece in original(self, step, count)])
        kept = held.get(id(self)) if step % 2 else None
        held[id(self)] = fresh
        return iter([fresh if kept is None or len(kept) != count else kept])

    patch(SecureNoise, "pieces", pieces)


def noise_key_constant(patch: Patch) -> None:
    original = Keystream.__init__

    def known(self: Any, rank: int = 0, test_key: bytes | None = None) -> None:
        original(self, rank, test_key or b"k" * 32)

    patch(Keystream, "__init__", known)


def noise_per_physical_batch(patch: Patch) -> None:
    original = Trainer._release

    def release(self: Any, step: int, total: DrawSum) -> None:
        held = self.noise
        count = max(1, getattr(total, "batches_added", 1))
        original(replace(self, noise=_Scaled(held, 1.0 / count**0.5)), step, total)

    added = DrawSum.add

    def add(self: Any, *given: Any, **named: Any) -> Any:
        self.batches_added = getattr(self, "batches_added", 0) + 1
        return added(self, *given, **named)

    clear = DrawSum.clear

    def cleared(self: Any) -> None:
        self.batches_added = 0
        clear(self)

    patch(DrawSum, "add", add)
    patch(DrawSum, "clear", cleared)
    patch(Trainer, "_release", release)


class _Scaled:
    name = "scaled"

    def __init__(self, inner: Any, factor: float) -> None:
        self.inner, self.factor = inner, factor

    def pieces(self, step: int, count: int) -> Iterator[Tensor]:
        return ((piece * self.factor).round() for piece in self.inner.pieces(step, count))

    def draw(self, step: int, count: int) -> Tensor:
        return (self.inner.draw(step, count) * self.factor).round()


def noise_divided_by_batch(patch: Patch) -> None:
    original = assemble.build_noise

    def build(plan: Any, *rest: Any) -> Any:
        low = replace(plan.mechanism, noise_multiplier=plan.mechanism.noise_multiplier / plan.expected_batch_size)
        return original(replace(plan, mechanism=low), *rest)

    patch(assemble, "build_noise", build)


def noise_with_clip_squared(patch: Patch) -> None:
    original = assemble.build_noise

    def build(plan: Any, *rest: Any) -> Any:
        norm = plan.mechanism.clipping_norm
        other = replace(plan.mechanism, noise_multiplier=plan.mechanism.noise_multiplier * norm)
        return original(replace(plan, mechanism=other), *rest)

    patch(assemble, "build_noise", build)


def noise_after_the_draw_is_known(patch: Patch) -> None:
    """The deviation follows the number of units in the draw, so that the average gets a constant one."""
    original = Trainer._release

    def release(self: Any, step: int, total: DrawSum) -> None:
        length = float(total.flat().norm()) * (self.grid or 1.0)
        original(replace(self, noise=_Scaled(self.noise, min(1.0, 0.2 + length / 20.0))), step, total)

    patch(Trainer, "_release", release)


def stream_address_repeats(patch: Patch) -> None:
    """Counters of steps wrap around after four."""
    original = Keystream.open

    def reopened(self: Any, purpose: Purpose, step: int) -> Any:
        self._last_step.clear()
        return original(self, purpose, step % 4)

    patch(Keystream, "open", reopened)


def stream_of_32_bits(patch: Patch) -> None:
    """The upper halves of all random words are zero."""
    original = keystream.Stream.fill

    def fill(self: Any, out: np.ndarray) -> np.ndarray:
        original(self, out)
        if out.dtype == np.int64:
            out &= 0x00FFFFFFFFFFFFFF
        return out

    patch(keystream.Stream, "fill", fill)


MUTANTS: dict[str, Mutant] = {
    "noise_90": ("3b.6", "noise deviation times 0.9", scaled_noise(0.9), ()),
    "noise_95": ("3b.6", "noise deviation times 0.95", scaled_noise(0.95), ()),
    "noise_half": ("3b.10", "noise deviation halved", scaled_noise(0.5), ()),
    "noise_world": ("3a user flag, 3b.16", "noise over the root of the world size", scaled_noise(0.5**0.5), ()),
    "noise_fast_90": ("3b.6", "noise deviation times 0.9, in floating point", scaled_noise(0.9), FAST),
    "noise_zero": ("3a silent non-private", "no noise", changed_noise(noise_zero), ()),
    "noise_on_mean": ("3b.5", "noise of the mean added to the sum", noise_divided_by_batch, ()),
    "noise_clip_squared": (
        "3b.6",
        "an extra factor C in the noise, C = 1/2",
        noise_with_clip_squared,
        ("privacy.clipping_norm=0.5",),
    ),
    "noise_per_micro_batch": ("3b.7", "noise shrinks with physical batches", noise_per_physical_batch, ()),
    "noise_follows_sum": ("3b.4", "noise deviation follows the sum", noise_after_the_draw_is_known, ()),
    "noise_uniform": ("3b.26", "uniform noise of the same deviation", changed_noise(noise_uniform), ()),
    "noise_laplace": ("3b.26", "Laplace noise of the same deviation", changed_noise(noise_laplace), ()),
    "noise_cut": ("3b.26", "noise cut off at 1.5 deviations", changed_noise(noise_cut), ()),
    "noise_one_value": ("3b.16", "one noise value for all coordinates", changed_noise(noise_one_value), ()),
    "noise_mirrored": ("3b.16", "half of the noise is the other half, negated", changed_noise(noise_mirrored), ()),
    "noise_misses_a_parameter": ("3b.5", "the last parameter gets no noise", changed_noise(noise_missing_in_last), ()),
    "seed_same_every_step": ("3a resume, 3b.18", "the same noise every step", noise_same_every_step, ()),
    "noise_reused": ("3b.18", "every other step takes the noise of the one before", noise_every_other_step, ()),
    "key_constant": ("3a resume, 3b.18", "every run has the same key", noise_key_constant, ()),
    "counter_wraps": ("3b.18", "key stream addresses repeat after four steps", stream_address_repeats, ()),
    "words_cut": ("3b.26", "the upper byte of random words is zero", stream_of_32_bits, ()),
}
