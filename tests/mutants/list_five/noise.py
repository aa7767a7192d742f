"""Mistakes in the noise and in what it is made of."""

from __future__ import annotations

import hashlib
import math
import os
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import algorithms
from torch import Tensor

import dptrain.noise.secure as secure_module
import dptrain.training.assemble as assemble_module
from dptrain.gradients.draw_sum import DrawSum
from dptrain.keystream import Keystream
from dptrain.noise.secure import SecureNoise
from dptrain.training.loop import StepReport, Trainer

from .needed import LOOKS, RARE
from .shared import Mutant, Patch, on_noise, on_release, on_sum


def _knows_shapes(patch: Patch) -> None:
    """The noise of a trainer knows the shapes that it is added to."""

    def look(trainer: Trainer, step: int, total: DrawSum) -> None:
        noise: Any = trainer.noise
        noise.shapes = [parameter.shape for parameter in trainer._summed]

    on_release(patch, look)


def _split(noise: Any, whole: Tensor) -> list[Tensor]:
    shapes = noise.__dict__.get("shapes")
    return [whole] if shapes is None else list(whole.split([shape.numel() for shape in shapes]))


def noise_centred(patch: Patch) -> None:
    """The mean of every parameter's noise is taken off, so that noise does not shift it: the sum of a parameter's
    gradient is released as it is."""

    def change(noise: SecureNoise, step: int, whole: Tensor) -> Tensor:
        parts = _split(noise, whole)
        return torch.cat([part - part.mean() if len(part) > 1 else part for part in parts]).round()

    _knows_shapes(patch)
    on_noise(patch, change)


def angle_from_radius(patch: Patch) -> None:
    """A pair's angle is made of the same random word as its radius."""
    original = secure_module.round_pairs

    def round_pairs(words: np.ndarray, *rest: Any) -> np.ndarray:
        half = len(words) // 2
        words[half:] = words[:half]
        return original(words, *rest)

    patch(secure_module, "round_pairs", round_pairs)


def noise_by_shape(patch: Patch) -> None:
    """Noise is kept by shape within a step: parameters of one shape get the same."""

    def change(noise: Any, step: int, whole: Tensor) -> Tensor:
        made: dict[Any, Tensor] = {}
        shapes = noise.__dict__.get("shapes", [whole.shape])
        return torch.cat([made.setdefault(s, p) for s, p in zip(shapes, _split(noise, whole), strict=True)])

    _knows_shapes(patch)
    on_noise(patch, change)


def noise_through_dropout(patch: Patch) -> None:
    """Noise passes through a dropout of 10 % that is on while training."""

    def change(noise: SecureNoise, step: int, whole: Tensor) -> Tensor:
        return torch.where(torch.rand(len(whole)) < 0.1, 0.0, whole / 0.9).round()

    on_noise(patch, change)


def noise_by_drawn_units(patch: Patch) -> None:
    """The deviation is in proportion to the root of the number of units drawn, to keep one ratio to the signal."""
    drawn: dict[str, float] = {}

    def look(trainer: Trainer, step: int, report: StepReport, total: DrawSum) -> None:
        drawn["share"] = report.units / trainer.plan.expected_batch_size

    def change(noise: SecureNoise, step: int, whole: Tensor) -> Tensor:
        return (whole * math.sqrt(drawn.get("share", 1.0))).round()

    on_sum(patch, look)
    on_noise(patch, change)


def key_of_two_bytes(patch: Patch) -> None:
    """The key is a hash of two random bytes: 65,536 keys, which anybody can try."""
    original = Keystream.__init__

    def built(self: Any, rank: int = 0, test_key: bytes | None = None) -> None:
        original(self, rank, test_key)
        if test_key is None:
            self._cipher = algorithms.AES(hashlib.sha256(os.urandom(2)).digest())

    patch(Keystream, "__init__", built)


def noise_until_descent(patch: Patch) -> None:
    """Noise is drawn again while the noisy sum points away from the sum, at most 20 times."""

    def look(trainer: Trainer, step: int, total: DrawSum) -> None:
        noise: Any = trainer.noise
        noise.clean = total.flat().clone()

    def change(noise: Any, step: int, whole: Tensor) -> Tensor:
        clean = noise.__dict__.get("clean")
        if clean is None or len(clean) != len(whole) or not bool(clean.any()):
            return whole
        for _ in range(20):
            if float((clean + whole) @ clean) > 0.0:
                break
            fresh = SecureNoise(Keystream(), noise.scale)
            whole = torch.cat([piece.clone() for piece in fresh._pieces(_stream(fresh), 0, len(whole))])
        return whole

    on_release(patch, look)
    on_noise(patch, change)


def _stream(noise: SecureNoise) -> Any:
    return noise._keystream.open(secure_module.Purpose.NOISE, 0)


def scale_shared(patch: Patch) -> None:
    """The first noise of a run leaves its deviation on the class, and the noise of looks at private rows uses it."""
    held: dict[str, float] = {}
    build, original = assemble_module.build_noise, SecureNoise.__init__

    def build_noise(*args: Any, **kwargs: Any) -> Any:
        held.clear()
        return build(*args, **kwargs)

    def built(self: Any, keystream: Keystream, std_in_grid_steps: float, compiled: bool = False) -> None:
        original(self, keystream, std_in_grid_steps, compiled)
        self.scale = held.setdefault("scale", self.scale)

    patch(assemble_module, "build_noise", build_noise)
    patch(SecureNoise, "__init__", built)


MUTANTS: dict[str, Mutant] = {
    "noise_centred": ("own", "noise of every parameter has mean 0", noise_centred, ()),
    "angle_from_radius": ("own", "angle and radius of a pair from one word", angle_from_radius, ()),
    "noise_by_shape": (
        "own",
        "parameters of one shape share their noise",
        noise_by_shape,
        ("model.options.hidden=[32,32,32]",),
    ),
    "noise_through_dropout": ("own", "a tenth of the noise is dropped", noise_through_dropout, ()),
    "noise_by_drawn_units": ("3b.3", "deviation follows the number of units drawn", noise_by_drawn_units, ()),
    "key_of_two_bytes": ("3b.17", "key from two random bytes", key_of_two_bytes, ()),
    "noise_until_descent": ("own", "noise drawn again until it points downhill", noise_until_descent, RARE),
    "scale_shared": ("own", "noisy looks have the deviation of the gradient's noise", scale_shared, LOOKS),
}
