"""Both noise transforms compiled by numba (extra ``fast``): two to four times as fast on a CPU, the same laws.

Written as loops over blocks that stay in the nearest cache and that a compiler can turn into vector instructions: no
function calls but square roots, no branches, never the same array for reading and writing. Logarithm, sine and cosine
are Taylor sums, whose remainders are known:

    log m = 2 s (1 + z/3 + z^2/5 + ...),  s = (m - 1)/(m + 1), z = s^2,  for m in [sqrt(1/2), sqrt(2)): z < 0.0295
    sin p, cos p for |p| <= pi/4

In float64 they are cut where the next term is below 2^-59 of the result, so that rounding is all that is left: below 2
units in the last place, where the proof in docs/noise.md allows 16.
"""

from __future__ import annotations

import math

import numpy as np

from dptrain.compiling import loop
from dptrain.noise.secure import CUT

BLOCK = 1024
"""Pairs a block: its arrays take at most 100 KB."""
FEW = 256
"""Pairs that are looked at together for one that is not certain."""


f32, i32 = np.float32, np.int32
_LOW, _HALF32 = i32(0x7FFFFFFF), i32(0x3F3504F3)  # float32's bits of sqrt(1/2)
_A1, _A2, _A3, _A4 = f32(2 / 3), f32(2 / 5), f32(2 / 7), f32(2 / 9)
_S1, _S2, _S3, _S4 = f32(-1 / 6), f32(1 / 120), f32(-1 / 5040), f32(1 / 362880)
_C1, _C2, _C3, _C4 = f32(-1 / 2), f32(1 / 24), f32(-1 / 720), f32(1 / 40320)


@loop
def _split32(high, low, exponent, mantissa, uniform):
    bits = uniform.view(np.int32)
    for j in range(len(high)):
        # 2^-64 tells on words of 0 only, which would have no logarithm
        uniform[j] = f32(2.0**-64) + (f32(high[j] & _LOW) * f32(2.0**-31) + f32(low[j] & _LOW) * f32(2.0**-62))
    for j in range(len(high)):
        moved = bits[j] - _HALF32
        mantissa[j] = (moved & i32(0x7FFFFF)) + _HALF32
        exponent[j] = f32(moved >> i32(23))


@loop
def _length32(exponent, mantissa, high, scale, length):
    for j in range(len(length)):
        m = mantissa[j]
        s = (m - f32(1)) / (m + f32(1))
        z = s * s
        log = exponent[j] * f32(math.log(2)) + (f32(2) * s + s * z * (_A1 + z * (_A2 + z * (_A3 + z * _A4))))
        length[j] = np.sqrt(abs(f32(2) * log)) * scale * f32(i32(1) | (high[j] >> i32(31)))


@loop
def _turn32(length, angle, cosines, sines):
    for j in range(len(length)):
        p = f32(angle[j]) * f32(0.5 * math.pi * 2.0**-32)
        w = p * p
        s = p * (f32(1) + w * (_S1 + w * (_S2 + w * (_S3 + w * _S4))))
        c = f32(1) + w * (_C1 + w * (_C2 + w * (_C3 + w * _C4)))
        cosines[j] = (f32(1) - f32(2) * s * s) * length[j]
        sines[j] = f32(2) * s * c * length[j]


@loop
def _normals(words, scale, out):
    half = len(out) // 2
    uniform, exponent, length = np.empty(BLOCK, f32), np.empty(BLOCK, f32), np.empty(BLOCK, f32)
    mantissa = np.empty(BLOCK, i32)
    for start in range(0, half, BLOCK):
        n = min(BLOCK, half - start)
        high, low = words[start : start + n], words[half + start : half + start + n]
        angle = words[2 * half + start : 2 * half + start + n]
        _split32(high, low, exponent[:n], mantissa[:n], uniform[:n])
        _length32(exponent[:n], mantissa[:n].view(f32), high, scale, length[:n])
        _turn32(length[:n], angle, out[start : start + n], out[half + start : half + start + n])


def normals(words: np.ndarray, scale: float, out: np.ndarray) -> None:
    """The transform of ``fast.box_muller``.

    Args:
        words: (3h,) int32: h high halves of the radius, h low ones, h angles.
        scale: standard deviation.
        out: (2h,) float32, written.
    """
    _normals(words, f32(scale), out)


_HALF64 = np.int64(np.array(math.sqrt(0.5)).view(np.int64))
_OFFSET = np.int64(64 << 52)  # exponents are counted from -64, so that they are not negative
_WHOLE = np.int64(0x4330000000000000)  # the bits of 2^52: a whole number below it, or-ed in, is added to it
_LN2_HIGH, _LN2_LOW = 0.6931471805598903, 5.497923018708371e-14  # 42 bits, whose products here are exact; the rest


@loop
def _whole(words, mask, out):
    """64-bit words, or what a mask leaves of their high halves, as float64, rounded once."""
    halves = words.view(np.int32)
    for j in range(len(out)):
        low = np.float64(halves[2 * j] ^ i32(-(2**31))) + 2.0**31
        out[j] = np.float64(halves[2 * j + 1] & mask) * 2.0**32 + low


@loop
def _split64(uniform, exponent, mantissa):
    bits = uniform.view(np.int64)
    for j in range(len(uniform)):
        moved = bits[j] - _HALF64 + _OFFSET
        mantissa[j] = (moved & np.int64(0xFFFFFFFFFFFFF)) + _HALF64
        exponent[j] = np.int64(np.uint64(moved) >> np.uint64(52)) | _WHOLE


@loop
def _length64(exponent, mantissa, sign, scale, length):
    bits = sign.view(np.int32)
    for j in range(len(length)):
        e = exponent[j] - (2.0**52 + 64.0)
        m = mantissa[j]
        s = (m - 1.0) / (m + 1.0)
        z = s * s
        z2, z4 = z * z, z * z * z * z
        rest = (2 / 5 + z * (2 / 7)) + z2 * (2 / 9 + z * (2 / 11))
        rest += z4 * ((2 / 13 + z * (2 / 15)) + z2 * (2 / 17 + z * (2 / 19)) + z4 * (2 / 21))
        log = e * _LN2_HIGH + (2.0 * s + (s * z * (2 / 3 + z * rest) + e * _LN2_LOW))
        length[j] = np.sqrt(abs(2.0 * log)) * scale * np.float64(i32(1) | (bits[2 * j + 1] >> i32(31)))


@loop
def _turn64(length, angle, cosines, sines):
    for j in range(len(length)):
        p = angle[j] * (0.5 * math.pi * 2.0**-64)
        w = p * p
        w2, w4 = w * w, w * w * w * w
        rest = (1 / 120 - w * (1 / 5040)) + w2 * (1 / 362880 - w * (1 / 39916800))
        rest += w4 * ((1 / 6227020800 - w * (1 / 1307674368000)) + w2 * (1 / 355687428096000))
        s = p - p * w * (1 / 6 - w * rest)
        rest = (1 / 24 - w * (1 / 720)) + w2 * (1 / 40320 - w * (1 / 3628800))
        rest += w4 * ((1 / 479001600 - w * (1 / 87178291200)) + w2 * (1 / 20922789888000 - w * (1 / 6402373705728000)))
        c = 1.0 - w * (0.5 - w * rest)
        cosines[j] = (1.0 - 2.0 * s * s) * length[j]
        sines[j] = 2.0 * s * c * length[j]


@loop
def _round(values, threshold, out, gap):
    doubtful = 0
    for j in range(len(out)):
        whole = np.rint(values[j])
        out[j] = whole
        gap[j] = values[j] - whole
        doubtful += np.int64(not abs(values[j] - whole) < threshold)
    return doubtful


@loop
def _outside(uniform, low, high):
    doubtful = 0
    for j in range(len(uniform)):
        doubtful += np.int64(uniform[j] < low) + np.int64(uniform[j] > high)
    return doubtful


@loop
def _rounded(words, scale, out, gap, values, threshold, cut):
    half = len(out) // 2
    uniform, exponent, length, angle = np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK)
    mantissa = np.empty(BLOCK)
    doubtful = 0
    for start in range(0, half, BLOCK):
        n = min(BLOCK, half - start)
        radius, turn = words[start : start + n], words[half + start : half + start + n]
        _whole(radius, i32(0x7FFFFFFF), uniform[:n])
        for j in range(n):
            uniform[j] *= 2.0**-63
        doubtful += _outside(uniform[:n], cut, 1.0 - cut)
        _split64(uniform[:n], exponent[:n].view(np.int64), mantissa[:n].view(np.int64))
        _length64(exponent[:n], mantissa[:n], radius, scale, length[:n])
        _whole(turn, i32(-1), angle[:n])
        _turn64(length[:n], angle[:n], values[start : start + n], values[half + start : half + start + n])
        for first in (start, half + start):
            last = first + n
            doubtful += _round(values[first:last], threshold, out[first:last], gap[first:last])
    return doubtful


def rounded(words: np.ndarray, scale: float, out: np.ndarray, work: np.ndarray, threshold: float, cut: float) -> bool:
    """The transform of ``secure.transform``: the same arguments, the same answer."""
    size = len(out)
    return _rounded(words, scale, out, work[0, :size], work[1, :size], threshold, cut) == 0


@loop
def _doubtful(gap, threshold):
    doubtful = 0
    for j in range(len(gap)):
        doubtful += np.int64(not abs(gap[j]) < threshold)
    return doubtful


@loop
def _suspects(radius, gap, threshold, low, high, found):
    half, count = len(radius), 0
    uniform = np.empty(FEW)
    for start in range(0, half, FEW):
        n = min(FEW, half - start)
        cosines, sines = gap[start : start + n], gap[half + start : half + start + n]
        _whole(radius[start : start + n], i32(0x7FFFFFFF), uniform[:n])
        if _outside(uniform[:n], low, high) + _doubtful(cosines, threshold) + _doubtful(sines, threshold) == 0:
            continue
        for j in range(n):
            if not (abs(cosines[j]) < threshold and abs(sines[j]) < threshold and low <= uniform[j] <= high):
                found[count] = start + j
                count += 1
    return count


def suspects(radius: np.ndarray, gap: np.ndarray, threshold: float) -> np.ndarray:
    """The same indices as ``secure.suspects``."""
    found = np.empty(len(radius), dtype=np.int64)
    return found[: _suspects(radius, gap, threshold, CUT * 2.0**63, (1.0 - CUT) * 2.0**63, found)]
