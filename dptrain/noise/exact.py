"""One pair of normals, rounded with certainty: interval arithmetic on lazily extended random bits.

The words that drive a pair are the leading bits of two ideal uniforms. As long as the rounding of both normals
is not the same for every continuation of those bits, more bits are drawn.
"""

from __future__ import annotations

from fractions import Fraction
from math import floor
from typing import Any

import mpmath

from dptrain.keystream import Stream

RADIUS_BITS = 63
"""Bits of the radius word that are the radius; the sign bit is the half of the circle."""

ANGLE_BITS = 64

_interval: Any = mpmath.iv

EXTENSION_WORDS = 4
"""Most 64-bit words by which each uniform is extended before the middle of what is left is taken."""


def rounded_pair(radius: int, angle: int, scale: float, extension: Stream) -> tuple[float, float]:
    """Rounds both members of a pair as the ideal, infinitely precise Box-Muller transform would.

    The radius is ``sqrt(-2 ln U)`` with ``U`` in ``[k, k + 1) 2^-63``, k the low 63 bits of its word; the angle is
    ``pi T`` with ``T`` in ``[t, t + 1) 2^-64``, t the signed word; the radius word's sign bit picks the half circle.

    Guarantee: exact, except with probability below 2^-100 a pair (see docs/noise.md), when 256 bits decide nothing.

    Args:
        radius: the radius word, signed 64-bit.
        angle: the angle word, signed 64-bit.
        scale: standard deviation S.
        extension: fresh bits for this pair alone; the same for both members.

    Returns:
        round(S r cos), round(S r sin).
    """
    sign = -1 if radius < 0 else 1
    low_radius, low_angle = radius & ((1 << RADIUS_BITS) - 1), angle
    intervals = None
    for words in range(EXTENSION_WORDS + 1):
        if words:
            more = extension.uint64(2)
            low_radius = (low_radius << 64) | int(more[0])
            low_angle = (low_angle << 64) | int(more[1])
        intervals = pair_intervals(low_radius, low_angle, 64 * words, sign * scale)
        if intervals is not None:
            low, high = ([_nearest(end) for end in ends] for ends in zip(*((i.a, i.b) for i in intervals), strict=True))
            if low == high:
                return float(low[0]), float(low[1])
    if intervals is None:
        return 0.0, 0.0
    return float(_nearest(intervals[0].mid)), float(_nearest(intervals[1].mid))


def pair_intervals(radius: int, angle: int, extended: int, scale: float) -> tuple[Any, Any] | None:
    """Intervals that hold S r cos and S r sin for every continuation of the bits; None where they are unbounded.

    Args:
        radius: k followed by ``extended`` more bits.
        angle: t followed by ``extended`` more bits.
        extended: number of bits added to each.
        scale: signed standard deviation.
    """
    if radius == 0:
        return None
    held = _interval.prec
    _interval.prec = 128 + extended
    try:
        whole_radius, whole_angle = (
            _interval.mpf(2) ** (RADIUS_BITS + extended),
            _interval.mpf(2) ** (ANGLE_BITS + extended),
        )
        uniform = _interval.mpf([radius, radius + 1]) / whole_radius
        # At U = 1 the logarithm's interval may stick out above 0 by its rounding; a square cannot be negative.
        square = -2 * _interval.log(uniform)
        length = _interval.sqrt(_interval.mpf([max(square.a, _interval.mpf(0).a), square.b])) * _interval.mpf(scale)
        turn = _interval.pi * (_interval.mpf([angle, angle + 1]) / whole_angle)
        return length * _interval.cos(turn), length * _interval.sin(turn)
    finally:
        _interval.prec = held


def _nearest(end: Any) -> int:
    """The whole number nearest to an interval's end, exactly."""
    sign, mantissa, exponent, _ = end._mpi_[0] if hasattr(end, "_mpi_") else end._mpf_
    value = Fraction(int(mantissa)) * Fraction(2) ** exponent
    return floor((-value if sign else value) + Fraction(1, 2))
