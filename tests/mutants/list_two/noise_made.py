"""Mistakes in how noise is made, rounded and added."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dptrain.gradients.draw_sum as draw_sum_module
import dptrain.noise.secure as secure_module
import dptrain.training.assemble as assemble_module
from dptrain.keystream import Purpose
from dptrain.noise.ahead import NoiseAhead
from dptrain.noise.secure import SecureNoise

from .shared import Mutant, Patch, _on_secure


def tails_cut(patch: Patch) -> None:
    """Noise ends at 3.5 deviations."""

    def change(noise: SecureNoise, step: int, values: Tensor) -> Tensor:
        most = math.floor(3.5 * noise.scale)
        return values.clamp(-most, most)

    _on_secure(patch, change)


def twelve_uniforms(patch: Patch) -> None:
    """A normal is the sum of twelve uniforms, less six."""

    def pieces(self: SecureNoise, step: int, count: int) -> Iterator[Tensor]:
        stream = self._keystream.open(Purpose.NOISE, step)
        sums = np.zeros(count)
        for _ in range(12):
            sums += stream.uint64(count) * 2.0**-64
        return iter(torch.from_numpy(np.rint((sums - 6.0) * self.scale)).split(1 << 15))

    patch(SecureNoise, "pieces", pieces)


def seeded_by_step(patch: Patch) -> None:
    """Noise comes from torch's generator, seeded by the step's number."""

    def pieces(self: SecureNoise, step: int, count: int) -> Iterator[Tensor]:
        self._keystream.open(Purpose.NOISE, step)
        generator = torch.Generator().manual_seed(step)
        normal = torch.randn(count, generator=generator, dtype=torch.float64)
        return iter((normal * self.scale).round_().split(1 << 15))

    patch(SecureNoise, "pieces", pieces)


def coarse_lattice(patch: Patch) -> None:
    """Noise is made on a grid sixteen times as coarse as that of the sums, whose last bits show."""
    _on_secure(patch, lambda noise, step, values: (values / 16.0).round_() * 16.0)


def noise_truncated(patch: Patch) -> None:
    """Noise is cut to whole steps towards zero, not rounded."""
    _on_secure(patch, lambda noise, step, values: (values - 0.5 * values.sign()).trunc())


def undecided_kept(patch: Patch) -> None:
    """Pairs whose rounding is not certain are left as floating point has them."""
    original = secure_module.round_pairs

    def round_pairs(*args: Any) -> np.ndarray:
        return original(*args)[:0]

    patch(secure_module, "round_pairs", round_pairs)


def correlated_pairs(patch: Patch) -> None:
    """Neighbouring coordinates' noise has correlation 0.1, and the right deviation."""

    def change(noise: SecureNoise, step: int, values: Tensor) -> Tensor:
        mixed = values.clone()
        mixed[1::2] = (math.sqrt(1.0 - 0.01) * values[1::2] + 0.1 * values[0::2][: len(values[1::2])]).round()
        return mixed

    _on_secure(patch, change)


def compiled_last_entry(patch: Patch) -> None:
    """The compiled last pass leaves the noise off the last entry it writes."""
    import dptrain.gradients.compiled as compiled

    original = compiled.released

    def released(source: Tensor, noise: Tensor, scale: float, grad: Tensor) -> None:
        noise = noise.clone()
        noise[-1] = 0.0
        original(source, noise, scale, grad)

    patch(compiled, "released", released)
    patch(assemble_module, "WORTH_COMPILING", 1)


def compiled_quiet(patch: Patch) -> None:
    """The compiled transform has 0.95 of the deviation."""
    import dptrain.noise.compiled as compiled

    original = compiled.rounded

    def rounded(words: np.ndarray, scale: float, *rest: Any) -> bool:
        return original(words, 0.95 * scale, *rest)

    patch(compiled, "rounded", rounded)
    patch(assemble_module, "WORTH_COMPILING", 1)


def ahead_stale(patch: Patch) -> None:
    """Noise that another thread draws is handed out again in every third step."""
    original = NoiseAhead.draw

    def draw(self: Any, step: int, count: int) -> Tensor:
        fresh = original(self, step, count)
        held = self.__dict__.get("held")
        if step % 3 == 2 and held is not None and len(held) == count:
            return held.clone()
        self.held = fresh.clone()
        return fresh

    patch(NoiseAhead, "draw", draw)
    patch(assemble_module, "WORTH_A_THREAD", 1)
    patch(assemble_module, "_cores", lambda: 1 << 10)


def float32_noise(patch: Patch) -> None:
    """Sum and noise meet in float32, where their last digits show through."""
    original = draw_sum_module._release

    def release(source: Tensor, grad: Tensor, blocks: Any, scale: float, on_grid: bool, compiled: bool = False) -> None:
        if blocks is None or not on_grid:
            original(source, grad, blocks, scale, on_grid, compiled)
            return
        done = 0
        while done < len(source):
            noise = blocks.next(len(source) - done).to(source.device)
            stop = done + len(noise)
            grad[done:stop] = source[done:stop].float() * scale + noise.float() * scale
            done = stop

    patch(draw_sum_module, "_release", release)


MUTANTS: dict[str, Mutant] = {
    "tails_cut": ("own", "noise ends at 3.5 deviations", tails_cut, ()),
    "twelve_uniforms": ("own", "sum of twelve uniforms instead of a normal", twelve_uniforms, ()),
    "seeded_by_step": ("own", "noise seeded by the step's number", seeded_by_step, ()),
    "coarse_lattice": ("Mironov 2012", "noise on a grid 16 times as coarse as the sums", coarse_lattice, ()),
    "noise_truncated": ("own", "noise cut towards zero", noise_truncated, ()),
    "undecided_kept": ("own", "uncertain roundings are left as they are", undecided_kept, ()),
    "correlated_pairs": ("own", "neighbouring coordinates' noise correlated by 0.1", correlated_pairs, ()),
    "compiled_last_entry": ("own", "compiled release: last entry without noise", compiled_last_entry, ()),
    "compiled_quiet": ("own", "compiled noise has 0.95 of its deviation", compiled_quiet, ()),
    "ahead_stale": ("own", "noise drawn ahead is used again", ahead_stale, ()),
    "float32_noise": ("Mironov 2012", "noise added in float32", float32_noise, ()),
}
