"""The default noise: an exactly rounded Gaussian on the integer grid, from the AES keystream.

Every coordinate is round(S Z), Z standard normal. A float64 Box-Muller transform computes S Z with an error that
is proved small; where that error could change the rounding, and only there, the pair is computed again with as
many bits as it takes. What comes out is therefore not "a Gaussian up to floating point" but the rounded Gaussian,
and rounding an ideal Gaussian added to whole numbers is post-processing of the Gaussian mechanism. The argument,
with the error analysis, is in docs/noise.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from dptrain.errors import ConfigError
from dptrain.keystream import Keystream, Purpose, Stream
from dptrain.noise.exact import rounded_pair

PAIRS = 1 << 14
"""Pairs worked on at once, so that a chunk's buffers stay in cache."""

CUT = 2.0**-24
"""The fast bound holds for U in [CUT, 1 - CUT]; other pairs are looked at one by one."""

FAST_BOUND = 2.0**-40
"""Proved bound on |computed - ideal| / S for U in [CUT, 1 - CUT]; about twice what the proof needs."""

_SMALLEST_SCALE, _LARGEST_SCALE = 2.0**-10, 2.0**36
_SURE_SCALE = 2.0**10
"""Bounds are never taken for a smaller S, so that their slack covers the rounding of the comparison itself."""

_MASK = np.int64((1 << 63) - 1)
_EPSILON = 2.0**-53


class SecureNoise:
    """Exact samples of round(N(0, S^2)), independent across coordinates and steps.

    Guarantee: up to AES-256 being a pseudo-random permutation, ``count`` coordinates are within total variation
    ``distance(count)`` of ideal rounded Gaussians. Assumes IEEE-754 float64 and library functions log, sqrt and sin
    with errors of at most 16 units in the last place (a test measures them; they are below 1).

    Args:
        keystream: source of the random words (``Purpose.NOISE``, and ``Purpose.NOISE_TIE`` for undecided pairs).
        std_in_grid_steps: S, the standard deviation in grid steps, in [2^-10, 2^36].
        compiled: whether numba's transform is used, which must be installed. The same law, by the same proof.

    Raises:
        ConfigError: S is outside that range.
    """

    name = "secure"

    def __init__(self, keystream: Keystream, std_in_grid_steps: float, compiled: bool = False) -> None:
        if not _SMALLEST_SCALE <= std_in_grid_steps <= _LARGEST_SCALE:
            raise ConfigError(
                "privacy.noise_multiplier",
                f"{std_in_grid_steps:g} grid steps",
                "the noise's standard deviation is outside [2^-10, 2^36] steps of the integer grid",
                "choose another noise_multiplier or sensitivity_slack",
            )
        self.scale = float(std_in_grid_steps)
        self._keystream = keystream
        self._transform, self._suspects = _compiled() if compiled else (transform, suspects)
        self._words = np.empty(2 * PAIRS, dtype=np.int64)
        self._work = np.empty((2, 2 * PAIRS))
        self._out = np.empty(2 * PAIRS)

    def draw(self, step: int, count: int) -> Tensor:
        """(count,) float64 whole numbers. See ``Noise``. On the CPU, whatever device the model is on."""
        out = torch.empty(count, dtype=torch.float64)
        done = 0
        for piece in self.pieces(step, count):
            out[done : done + len(piece)] = piece
            done += len(piece)
        return out

    def pieces(self, step: int, count: int) -> Iterator[Tensor]:
        """See ``Noise``."""
        return self._pieces(self._keystream.open(Purpose.NOISE, step), step, count)

    def _pieces(self, stream: Stream, step: int, count: int) -> Iterator[Tensor]:
        ties: Stream | None = None
        for start in range(0, count, 2 * PAIRS):
            left = min(2 * PAIRS, count - start)
            part = self._out[: left + left % 2]
            words = stream.fill(self._words[: len(part)])
            undecided = round_pairs(words, self.scale, part, self._work, self._transform, self._suspects)
            if len(undecided):
                ties = ties or self._keystream.open(Purpose.NOISE_TIE, step)
                settle(undecided, words, self.scale, part, ties)
            yield torch.from_numpy(part[:left])

    def distance(self, total_draws: int) -> float:
        """Total variation distance of ``total_draws`` coordinates from ideal rounded Gaussians: 2^-100 each.

        A mechanism within distance d of an (epsilon, delta) one is (epsilon, delta + (1 + e^epsilon) d).
        """
        return total_draws * 2.0**-100


Transform = Callable[[np.ndarray, float, np.ndarray, np.ndarray, float, float], bool]
"""See ``transform``."""
Suspects = Callable[[np.ndarray, np.ndarray, float], np.ndarray]
"""See ``suspects``."""


def _compiled() -> tuple[Transform, Suspects]:
    from dptrain.noise import compiled

    return compiled.rounded, compiled.suspects


def round_pairs(
    words: np.ndarray,
    scale: float,
    out: np.ndarray,
    work: np.ndarray,
    how: Transform | None = None,
    find: Suspects | None = None,
) -> np.ndarray:
    """Transforms 2h random words into 2h rounded normals and says which pairs are not certain.

    Args:
        words: (2h,) int64: h radius words, then h angle words.
        scale: S.
        out: (2h,) float64, written: h cosine members, then h sine members.
        work: (2, >= 2h) float64 scratch; work[1] is left holding the normals before rounding.
        how: the transform; None for the one of this module.
        find: finds the pairs to look at again; None likewise.

    Returns:
        indices of pairs to be settled; none, most of the time.
    """
    half = len(out) // 2
    radius, gap = words[:half], work[0, : 2 * half]
    threshold = safe_distance(scale)
    with np.errstate(invalid="ignore"):  # a radius word of 0 gives inf - inf here, and is settled exactly
        if (how or transform)(words, scale, out, work, threshold, CUT):
            return np.empty(0, dtype=np.int64)
        doubtful = (find or suspects)(radius, gap, threshold)
        cosine_gap, sine_gap = np.abs(gap[doubtful]), np.abs(gap[half + doubtful])
        return doubtful[~certain(radius[doubtful], cosine_gap, sine_gap, scale)]


def safe_distance(scale: float) -> float:
    """Distance from a whole number under which a rounding is certain, for U in [CUT, 1 - CUT]."""
    return 0.5 - FAST_BOUND * max(scale, _SURE_SCALE)


def suspects(radius: np.ndarray, gap: np.ndarray, threshold: float) -> np.ndarray:
    """Indices of the pairs that the bound for all does not decide.

    Args:
        radius: (h,) int64 radius words.
        gap: (2h,) normals minus what they round to, cosine members first.
        threshold: distance from which on a rounding is not certain.
    """
    far = ~(np.abs(gap) < threshold)
    return np.flatnonzero(far[: len(radius)] | far[len(radius) :] | _outside(radius))


def transform(words: np.ndarray, scale: float, out: np.ndarray, work: np.ndarray, threshold: float, cut: float) -> bool:
    """Box-Muller in float64, rounded.

    With U the radius word's low 63 bits and P = (pi/2) T the angle's half, s = sin P:
    cos 2P = 1 - 2 s^2 and sin 2P = 2 s sqrt(1 - s^2) cover half the circle, and the radius word's sign bit the other.

    Args:
        words: (2h,) int64, as ``out`` and ``work`` in ``round_pairs``.
        scale: S.
        out: written.
        work: written: work[0] the normals minus what they round to, work[1] the normals.
        threshold: distance from a whole number, at most 1/2, from which on a rounding is not certain.
        cut: least U, and greatest 1 - U, for which ``threshold`` holds.

    Returns:
        whether every U and every distance lies within its bound.
    """
    half = len(out) // 2
    radius, angle = words[:half], words[half:]
    gap, normals = work[0, : 2 * half], work[1, : 2 * half]
    length, sine = gap[:half], gap[half:]  # buffers are few and reused, so that all of them stay in cache
    cosine_member, sine_member = normals[:half], normals[half:]
    uniform, square, root = cosine_member, cosine_member, sine_member
    np.bitwise_and(radius, _MASK, out=length.view(np.int64))
    np.multiply(length.view(np.int64), 2.0**-63, out=uniform)
    low, high = float(uniform.min()), float(uniform.max())
    torch.log(torch.from_numpy(uniform), out=torch.from_numpy(length))
    np.multiply(length, -8.0 * scale * scale, out=length)
    np.sqrt(length, out=length)  # 2 S r
    np.copysign(length, radius.view(np.float64), out=length)
    np.multiply(angle, 0.5 * math.pi * 2.0**-64, out=square)
    torch.sin(torch.from_numpy(square), out=torch.from_numpy(sine))
    np.multiply(sine, sine, out=square)
    np.subtract(1.0, square, out=root)
    np.sqrt(root, out=root)
    np.multiply(root, sine, out=root)
    np.multiply(root, length, out=sine_member)
    np.subtract(0.5, square, out=square)
    np.multiply(square, length, out=cosine_member)
    np.rint(normals, out=out)
    np.subtract(normals, out, out=gap)
    # NaN makes a comparison False, and so sends the chunk on to be looked at.
    return bool(low >= cut and high <= 1.0 - cut and gap.max() < threshold and gap.min() > -threshold)


def settle(pairs: np.ndarray, words: np.ndarray, scale: float, out: np.ndarray, ties: Stream) -> None:
    """Computes undecided pairs again, exactly, both members from the same further bits, in rising order."""
    half = len(out) // 2
    for pair in pairs.tolist():
        out[pair], out[half + pair] = rounded_pair(int(words[pair]), int(words[half + pair]), scale, ties)


def pair_bound(uniform: np.ndarray) -> np.ndarray:
    """Proved bound on |computed - ideal| / S for pairs with this U; infinite where the proof does not reach."""
    with np.errstate(divide="ignore", invalid="ignore"):
        square = -2.0 * np.log(uniform)
        length = np.sqrt(square)
        relative = _EPSILON + 2.0**-63 / uniform  # of U: conversion to float64, and the bits that follow the word
        bound = 4.0 * relative / length + 200.0 * _EPSILON * length
    # NaN fails both comparisons and stays uncertain.
    return np.where((uniform > 2.0**-40) & (square > 2.0**-40), bound, np.inf)


def _outside(radius: np.ndarray) -> np.ndarray:
    uniform = (radius & _MASK) * 2.0**-63
    return (uniform < CUT) | (uniform > 1.0 - CUT)


def certain(radius: np.ndarray, cosine_gap: np.ndarray, sine_gap: np.ndarray, scale: float) -> np.ndarray:
    """Whether the pair's own, sharper bound decides both roundings.

    Args:
        radius: (n,) int64 radius words.
        cosine_gap, sine_gap: (n,) distances of the two normals from what they round to.
        scale: S.
    """
    threshold = 0.5 - max(scale, _SURE_SCALE) * pair_bound((radius & _MASK) * 2.0**-63)
    return (cosine_gap < threshold) & (sine_gap < threshold)
