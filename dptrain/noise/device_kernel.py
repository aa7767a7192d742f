"""The noise of ``device.py`` as one Triton kernel: keystream and transform stay in registers, only noise is written.

Look-up tables of AES are read through the device's caches; everything else of a pair is arithmetic. Float64 constants
come from memory, since a number handed to a kernel would arrive in float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]  # comes with torch for CUDA
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

from dptrain.noise.secure import CUT

BLOCK = 256
"""Pairs of one program."""
MIDDLE = 1.5 * 2.0**52
"""Added to a float64 below 2^51 and taken away again, it leaves the nearest whole number, the even one of two."""


def rounded_by_triton(keys: Tensor, lookup: Tensor, out: Tensor, scale: float, safe: float) -> Tensor:
    """See ``device.Rounded``: the same pairs as by torch operations, but for doubtful ones."""
    numbers = [-8.0 * scale * scale, safe, CUT, 1.0 - CUT, 0.5 * math.pi * 2.0**-64, 2.0**-63, MIDDLE]
    constants = torch.tensor(numbers, dtype=torch.float64, device=out.device)
    doubtful = torch.empty(len(out), dtype=torch.int8, device=out.device)
    kernel: Any = _noise
    kernel[(triton.cdiv(len(out), BLOCK),)](keys, lookup, constants, out, doubtful, len(out), block=BLOCK)
    return doubtful.bool()


@triton.jit
def _looked_up(lookup, table: tl.constexpr, first, second, third, fourth):
    """One column after SubBytes, ShiftRows and, but for table 4, MixColumns: bytes 0 to 3 of four columns."""
    a = (first >> 24).to(tl.int32)
    b = ((second >> 16) & 0xFF).to(tl.int32)
    c = ((third >> 8) & 0xFF).to(tl.int32)
    d = (fourth & 0xFF).to(tl.int32)
    if table == 4:
        box = lookup + 4 * 256
        high = (tl.load(box + a) << 24) | (tl.load(box + b) << 16)
        return (high | (tl.load(box + c) << 8) | tl.load(box + d)).to(tl.uint32, bitcast=True)
    met = tl.load(lookup + a) ^ tl.load(lookup + 256 + b) ^ tl.load(lookup + 512 + c) ^ tl.load(lookup + 768 + d)
    return met.to(tl.uint32, bitcast=True)


@triton.jit
def _reversed(word):
    """The bytes of a uint32 in the other order, as uint64."""
    turned = (word << 24) | ((word & 0xFF00) << 8) | ((word >> 8) & 0xFF00) | (word >> 24)
    return turned.to(tl.uint64)


@triton.jit
def _key(keys, number):
    return tl.load(keys + number).to(tl.uint32, bitcast=True)


@triton.jit
def _noise(keys, lookup, constants, out, doubtful, pairs, block: tl.constexpr):
    pair = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    nothing = tl.zeros([block], dtype=tl.uint32)
    s0, s1, s2 = nothing ^ _key(keys, 0), nothing ^ _key(keys, 1), nothing ^ _key(keys, 2)
    s3 = pair.to(tl.uint32) ^ _key(keys, 3)
    for number in tl.static_range(1, 14):
        t0 = _looked_up(lookup, 0, s0, s1, s2, s3) ^ _key(keys, 4 * number)
        t1 = _looked_up(lookup, 0, s1, s2, s3, s0) ^ _key(keys, 4 * number + 1)
        t2 = _looked_up(lookup, 0, s2, s3, s0, s1) ^ _key(keys, 4 * number + 2)
        s3 = _looked_up(lookup, 0, s3, s0, s1, s2) ^ _key(keys, 4 * number + 3)
        s0, s1, s2 = t0, t1, t2
    b0 = _looked_up(lookup, 4, s0, s1, s2, s3) ^ _key(keys, 56)
    b1 = _looked_up(lookup, 4, s1, s2, s3, s0) ^ _key(keys, 57)
    b2 = _looked_up(lookup, 4, s2, s3, s0, s1) ^ _key(keys, 58)
    b3 = _looked_up(lookup, 4, s3, s0, s1, s2) ^ _key(keys, 59)
    radius = (_reversed(b0) | (_reversed(b1) << 32)).to(tl.int64, bitcast=True)
    angle = (_reversed(b2) | (_reversed(b3) << 32)).to(tl.int64, bitcast=True)
    square_scale, safe, cut, end = (
        tl.load(constants), tl.load(constants + 1), tl.load(constants + 2), tl.load(constants + 3)
    )  # fmt: skip
    middle = tl.load(constants + 6)
    uniform = (radius & 0x7FFFFFFFFFFFFFFF).to(tl.float64) * tl.load(constants + 5)
    length = tl.sqrt(tl.log(uniform) * square_scale)
    length = tl.where(radius < 0, -length, length)
    sine = tl.sin(angle.to(tl.float64) * tl.load(constants + 4))
    square = sine * sine
    first = (0.5 - square) * length
    second = tl.sqrt(1.0 - square) * sine * length
    first_whole, second_whole = (first + middle) - middle, (second + middle) - middle
    sure = (tl.abs(first - first_whole) < safe) & (tl.abs(second - second_whole) < safe)
    sure = sure & (uniform >= cut) & (uniform <= end)
    inside = pair < pairs
    tl.store(out + 2 * pair, first_whole, mask=inside)
    tl.store(out + 2 * pair + 1, second_whole, mask=inside)
    tl.store(doubtful + pair, tl.where(sure, 0, 1).to(tl.int8), mask=inside)
