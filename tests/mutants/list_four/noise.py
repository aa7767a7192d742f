"""Mistakes in noise and the key stream under it."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

import dptrain.noise.compiled as compiled_module
import dptrain.noise.secure as secure_module
import dptrain.training.assemble as assemble_module
from dptrain.gradients.draw_sum import DrawSum
from dptrain.keystream import Stream
from dptrain.noise.ahead import NoiseAhead
from dptrain.noise.secure import SecureNoise
from dptrain.training.loop import Trainer

from .shared import PIECE, Mutant, Patch, on_noise


def noise_low_rank(patch: Patch) -> None:
    """To draw less, noise of 32 by 64 coordinates is the product of two factors of rank 16."""

    def change(noise: SecureNoise, step: int, whole: Tensor) -> Tensor:
        for start in range(0, len(whole) - 2047, 2048):
            one, other = whole[start : start + 512].view(32, 16), whole[start + 512 : start + 1536].view(16, 64)
            whole[start : start + 2048] = (one @ other / (4.0 * noise.scale)).round().flatten()
        return whole

    on_noise(patch, change)


def radius_shared(patch: Patch) -> None:
    """Two pairs of normals have one radius, and angles of their own: who knows one pair knows the other's length."""
    original = secure_module.round_pairs
    mask, sign = np.int64((1 << 63) - 1), np.int64(-(1 << 63))

    def round_pairs(words: np.ndarray, scale: float, out: np.ndarray, *rest: Any) -> np.ndarray:
        half = len(out) // 2
        second = words[1:half:2]
        second[:] = (words[: half // 2 * 2 : 2] & mask) | (second & sign)
        return original(words, scale, out, *rest)

    patch(secure_module, "round_pairs", round_pairs)


def fill_repeats_first_chunk(patch: Patch) -> None:
    """What is asked for beyond 256 KiB at once is the first 256 KiB again: radii and angles share their bits."""
    original = Stream.fill

    def fill(self: Stream, out: np.ndarray) -> np.ndarray:
        original(self, out)
        view = out.view(np.uint8).reshape(-1)
        for start in range(1 << 18, len(view), 1 << 18):
            view[start : start + (1 << 18)] = view[: min(1 << 18, len(view) - start)]
        return out

    patch(Stream, "fill", fill)


def ahead_kept_in_bfloat16(patch: Patch) -> None:
    """Noise drawn ahead is kept in bfloat16, to save memory: its last bits are 0, and the sum's show through."""
    original = NoiseAhead.draw

    def begin(self: Any, step: int, count: int) -> None:
        self._begun = (step, self._pool.submit(lambda: self._noise.draw(step, count).bfloat16()))

    patch(NoiseAhead, "begin", begin)
    patch(NoiseAhead, "draw", lambda self, step, count: original(self, step, count).double())
    patch(assemble_module, "WORTH_A_THREAD", 1)
    patch(assemble_module, "_cores", lambda: 1 << 10)


def compiled_tail_stale(patch: Patch) -> None:
    """The compiled transform stops at its last whole block of 1,024 pairs: behind it lies the noise of before."""
    original = compiled_module.rounded
    filled: WeakValueDictionary[int, np.ndarray] = WeakValueDictionary()

    def rounded(words: np.ndarray, scale: float, out: np.ndarray, *rest: Any) -> bool:
        before, half = out.copy(), len(out) // 2
        sure = original(words, scale, out, *rest)
        whole = half // 1024 * 1024
        buffer: Any = out if out.base is None else out.base
        if whole and filled.get(id(buffer)) is buffer:
            out[whole:half], out[half + whole :] = before[whole:half], before[half + whole :]
        filled[id(buffer)] = buffer
        return sure

    patch(compiled_module, "rounded", rounded)
    patch(assemble_module, "WORTH_COMPILING", 1)


def first_step_without_noise(patch: Patch) -> None:
    """``if step:`` in the place of ``if step is not None``: the first step, whose number is 0, has no noise."""
    on_noise(patch, lambda noise, step, whole: whole if step else torch.zeros_like(whole))


def noise_turned_to_sum(patch: Patch) -> None:
    """Noise that points against the sum is turned round, so that no step goes backwards."""
    original = Trainer._release

    def release(self: Any, step: int, total: DrawSum) -> None:
        if self.noise is None or self.group is not None:
            return original(self, step, total)
        whole = torch.cat([piece.clone() for piece in self.noise.pieces(step, self._count)]).double()
        if float(whole @ total.flat()) < 0:
            whole = -whole
        total.release(iter(whole.split(PIECE)), (self.grid or 1.0) / self.plan.expected_batch_size)

    patch(Trainer, "_release", release)


MUTANTS: dict[str, Mutant] = {
    "noise_low_rank": ("own", "a matrix's noise has rank 16", noise_low_rank, ()),
    "radius_shared": ("own", "two pairs of normals share their radius", radius_shared, ()),
    "fill_repeats_first_chunk": (
        "own",
        "random bytes repeat within a step after 256 KiB",
        fill_repeats_first_chunk,
        ("privacy.noise=fast", "model.options.hidden=[1200]"),
    ),
    "ahead_kept_in_bfloat16": ("Mironov 2012, 3b.25", "noise ahead kept in bfloat16", ahead_kept_in_bfloat16, ()),
    "compiled_tail_stale": ("own", "compiled noise: last pairs are those of before", compiled_tail_stale, ()),
    "first_step_without_noise": ("own", "the first step has no noise", first_step_without_noise, ()),
    "noise_turned_to_sum": ("own", "noise is turned towards the sum", noise_turned_to_sum, ()),
}
