"""Mistakes in the noise and in how it meets the sum."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dptrain.gradients.draw_sum as draw_sum_module
import dptrain.noise.fast as fast_module
import dptrain.noise.secure as secure_module
import dptrain.training.assemble as assemble_module
from dptrain.gradients.draw_sum import _Blocks
from dptrain.noise.ahead import NoiseAhead
from dptrain.noise.secure import SecureNoise
from dptrain.privacy.mechanism import DPSGD

from .needed import MASKED
from .shared import Mutant, Patch, on_noise


def blocks_restart(patch: Patch) -> None:
    """What is left of a block is handed out from its beginning: all parameters begin with the same noise."""

    def following(self: _Blocks, most: int) -> Tensor:
        held: Any = self
        held.whole = self._left if len(self._left) else next(self._pieces)
        self._left = held.whole[:0] if most >= len(held.whole) else held.whole
        return held.whole[:most]

    patch(_Blocks, "next", following)


def blocks_overlap(patch: Patch) -> None:
    """A block's last value is left for the next parameter: neighbours share one value of noise, which cancels."""

    def following(self: _Blocks, most: int) -> Tensor:
        if len(self._left) == 0:
            self._left = next(self._pieces)
        piece = self._left[:most]
        self._left = self._left[max(1, most - 1) :] if most < len(self._left) else self._left[:0]
        return piece

    patch(_Blocks, "next", following)


def untouched_silent(patch: Patch) -> None:
    """Where a sum is 0 there is no noise, to keep embeddings sparse: who was drawn shows in what moves."""
    original = draw_sum_module._release

    def release(source: Tensor, grad: Tensor, blocks: Any, scale: float, on_grid: bool, compiled: bool = False) -> None:
        silent = source == 0
        original(source, grad, blocks, scale, on_grid, compiled)
        if blocks is not None and not bool(silent.all()):
            grad[silent] = 0.0

    patch(draw_sum_module, "_release", release)


def small_parameters_quieter(patch: Patch) -> None:
    """Noise is less on small parameters, by 0.3 over the root of their size: 9 % less on a bias of 10."""
    original = draw_sum_module._release

    def release(source: Tensor, grad: Tensor, blocks: Any, scale: float, on_grid: bool, compiled: bool = False) -> None:
        if blocks is None:
            original(source, grad, blocks, scale, on_grid, compiled)
            return
        clean = source.to(torch.float64, copy=True) * scale
        original(source, grad, blocks, scale, on_grid, compiled)
        less = 1.0 - 0.3 / math.sqrt(len(source))
        grad.copy_(clean + less * (grad.double() - clean))

    patch(draw_sum_module, "_release", release)


def ahead_half_stale(patch: Patch) -> None:
    """A buffer of noise drawn ahead is shared by two steps: every odd step's second half is that of the step before."""
    original = NoiseAhead.draw

    def draw(self: Any, step: int, count: int) -> Tensor:
        fresh = original(self, step, count)
        before = self.__dict__.get("buffer")
        self.buffer = fresh.clone()
        if step % 2 and before is not None and len(before) == count:
            fresh[count // 2 :] = before[count // 2 :]
        return fresh

    patch(NoiseAhead, "draw", draw)
    patch(assemble_module, "WORTH_A_THREAD", 1)
    patch(assemble_module, "_cores", lambda: 1 << 10)


def sign_lost(patch: Patch) -> None:
    """The sign bit that says which half of the circle is left out: every cosine member is above 0."""
    original = secure_module.round_pairs

    def round_pairs(words: np.ndarray, *rest: Any) -> np.ndarray:
        words[: len(words) // 2] &= np.int64((1 << 63) - 1)
        return original(words, *rest)

    patch(secure_module, "round_pairs", round_pairs)


def angle_coarse(patch: Patch) -> None:
    """Angles have 2 bits: the ratio of a pair's members is one of two, so that one member tells the other."""
    original = secure_module.round_pairs

    def round_pairs(words: np.ndarray, *rest: Any) -> np.ndarray:
        half = len(words) // 2
        words[half:] = (words[half:] >> np.int64(62) << np.int64(62)) + np.int64(1 << 61)
        return original(words, *rest)

    patch(secure_module, "round_pairs", round_pairs)


def fast_members_equal(patch: Patch) -> None:
    """Fast noise forgets the second member of a pair, and gives the first again with its sign turned."""
    original = fast_module.box_muller

    def box_muller(words: np.ndarray, scale: float, work: Tensor) -> Tensor:
        out = original(words, scale, work)
        half = len(out) // 2
        out[half:] = -out[:half]
        return out

    patch(fast_module, "box_muller", box_muller)


def fast_clipped_tail(patch: Patch) -> None:
    """Fast noise has a radius from 8 bits: it ends at 3.3 deviations."""
    original = fast_module.box_muller

    def box_muller(words: np.ndarray, scale: float, work: Tensor) -> Tensor:
        third = len(words) // 3
        words[:third] |= np.where(words[:third] >= 0, np.int32(0x7FFFFF), np.int32(0))
        words[:third] = np.where((words[:third] >= 0) & (words[:third] < (1 << 23)), 1 << 23, words[:third])
        words[:third] = np.where((words[:third] < 0) & (words[:third] > -(1 << 23)), -(1 << 23), words[:third])
        return original(words, scale, work)

    patch(fast_module, "box_muller", box_muller)


def variance_for_deviation(patch: Patch) -> None:
    """The noise is made with the variance in the place of the deviation: 0.64 for a multiplier of 0.8."""
    patch(DPSGD, "noise_std", property(lambda self: (self.noise_multiplier * self.sensitivity) ** 2))


def multiplier_rounded(patch: Patch) -> None:
    """The multiplier is read from a log with one digit: 1.04 becomes 1.0, and there is 4 % less noise."""
    patch(DPSGD, "noise_std", property(lambda self: round(self.noise_multiplier, 1) * self.sensitivity))


def columns_share(patch: Patch) -> None:
    """A matrix has one value of noise a row, spread over its columns: differences of columns have none."""
    original = draw_sum_module.DrawSum.release

    def release(self: Any, noise: Iterable[Tensor] | None, scale: float) -> None:
        if noise is not None:
            pieces = []
            whole = torch.cat([piece.clone() for piece in noise])
            for parameter, own in zip(self._parameters, whole.split(self._sizes), strict=True):
                own = own.clone().view(parameter.shape)
                if parameter.dim() == 2:
                    own = own[:, :1].expand(parameter.shape)
                pieces.append(own.reshape(-1))
            noise = iter([torch.cat(pieces)])
        original(self, noise, scale)

    patch(draw_sum_module.DrawSum, "release", release)


def banded(patch: Patch) -> None:
    """Noise of steps is correlated, z_t - 0.4 z_(t-1), and priced as if it were independent: averages have less."""
    held: dict[int, Tensor] = {}

    def change(noise: SecureNoise, step: int, values: Tensor) -> Tensor:
        before = held.get(id(noise))
        held[id(noise)] = values.clone()
        if before is None or len(before) != len(values):
            return values
        return ((values - 0.4 * before) / math.sqrt(1.16)).round()

    on_noise(patch, change)


def rolled(patch: Patch) -> None:
    """One vector of noise is drawn, and turned by the step's number in every step."""
    held: dict[tuple[int, int], Tensor] = {}

    def change(noise: SecureNoise, step: int, values: Tensor) -> Tensor:
        return held.setdefault((id(noise), len(values)), values.clone()).roll(step)

    on_noise(patch, change)


def from_table(patch: Patch) -> None:
    """Noise is looked up in a table of 4,096 normals made when the run began: values repeat, steps cancel."""
    held: dict[int, Tensor] = {}

    def change(noise: SecureNoise, step: int, values: Tensor) -> Tensor:
        table = held.setdefault(id(noise), values[:4096].clone())
        return table[values.long().remainder(len(table))]

    on_noise(patch, change)


def normalised(patch: Patch) -> None:
    """Every vector is brought to the deviation that was asked for: the noise's own norm is known, and so the sum's."""

    def change(noise: SecureNoise, step: int, values: Tensor) -> Tensor:
        return (values * (noise.scale * math.sqrt(len(values)) / float(values.norm()))).round()

    on_noise(patch, change)


FAST = ("privacy.noise=fast",)

MUTANTS: dict[str, Mutant] = {
    "blocks_restart": ("own", "parameters share a block's beginning", blocks_restart, ()),
    "blocks_overlap": ("own", "neighbouring parameters share one value", blocks_overlap, ()),
    "untouched_silent": ("Ghazi et al. 2023", "no noise where the sum is 0", untouched_silent, MASKED),
    "small_parameters_quieter": ("own", "less noise on small parameters", small_parameters_quieter, ()),
    "ahead_half_stale": ("own", "half of the noise ahead is the step before's", ahead_half_stale, ()),
    "sign_lost": ("own", "half of the noise has one sign", sign_lost, ()),
    "angle_coarse": ("own", "angles of pairs from 2 bits", angle_coarse, ()),
    "fast_members_equal": ("own", "half of fast noise is minus the other", fast_members_equal, FAST),
    "fast_clipped_tail": ("Mironov 2012", "fast noise from 8 bits ends at 3.3 deviations", fast_clipped_tail, FAST),
    "variance_for_deviation": (
        "own",
        "variance in the place of the deviation",
        variance_for_deviation,
        ("privacy.noise_multiplier=0.8",),
    ),
    "multiplier_rounded": (
        "own",
        "multiplier rounded to a digit",
        multiplier_rounded,
        ("privacy.noise_multiplier=1.04",),
    ),
    "columns_share": ("own", "one value of noise for a row of a matrix", columns_share, ()),
    "banded": ("Choquette-Choo et al. 2023", "noise correlated over steps", banded, ()),
    "rolled": ("own", "one noise vector, turned at every step", rolled, ()),
    "from_table": ("own", "noise from a table of 4,096 values", from_table, ("model.options.hidden=[64]",)),
    "normalised": ("own", "noise vectors have one norm", normalised, ()),
}
