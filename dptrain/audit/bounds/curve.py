"""Trade-off curves that bounds and tests hold scores against.

A curve is kept as pairs (epsilon, delta), epsilon >= 0, all of which the mechanism keeps; each pair allows a test of
one unit's presence with false alarms H a share R of members found of at most ``e^epsilon H + delta``, and by symmetry
``1 - H <= e^epsilon (1 - R) + delta`` (Dong, Roth & Su 2022, Proposition 4). Finitely many pairs allow a little more
than the curve itself, so every test that rests on them errs on the safe side.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import log_ndtr, ndtr

from dptrain.audit.bounds.bound import Floats
from dptrain.privacy.accounting import FINE, Event
from dptrain.privacy.tradeoff import Profile

READINGS = 241
"""Pairs that a smooth curve is read at."""


_Lines = tuple[list[float], list[tuple[float, float]]]


@dataclass(frozen=True)
class Curve:
    """A symmetric trade-off curve, from pairs that the mechanism keeps. ``name`` says whose."""

    name: str
    pairs: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not self.pairs or not all(e >= 0.0 and 0.0 <= d <= 1.0 for e, d in self.pairs):
            raise ValueError("a curve needs pairs (epsilon, delta), epsilon at least 0 and delta in [0, 1]")

    @cached_property
    def _arrays(self) -> tuple[Floats, Floats]:
        epsilons, deltas = np.array(self.pairs, dtype=np.float64).T
        return np.exp(epsilons), deltas

    @cached_property
    def _upper(self) -> tuple[_Lines, _Lines]:
        """The largest of all lines (found - delta) / e^epsilon, and of 1 - delta - e^epsilon (1 - found) in 1 - found:
        asked for one share at a time and very often, so that all pairs need not be gone through."""
        odds, deltas = self._arrays
        return _largest(1.0 / odds, -deltas / odds), _largest(-odds, 1.0 - deltas)

    def least_alarms(self, found: float) -> float:
        """H: the least rate of false alarms of a test that finds this share of members; 0 where none are needed."""
        (edges, lines), (mirrored, others) = self._upper
        slope, level = lines[bisect_right(edges, found)]
        steep, height = others[bisect_right(mirrored, 1.0 - found)]
        return max(0.0, slope * found + level, steep * (1.0 - found) + height)

    def most_found(self, alarms: Floats) -> Floats:
        """R: the largest share of members that any test finds at these rates of false alarms; (n,) for (n,)."""
        odds, deltas = self._arrays
        at = np.asarray(alarms, dtype=np.float64)[..., None]
        allowed = np.minimum(odds * at + deltas, 1.0 - np.maximum(0.0, 1.0 - deltas - at) / odds)
        return np.clip(allowed.min(axis=-1), 0.0, 1.0)


def _largest(slopes: Floats, levels: Floats) -> _Lines:
    """Where which of these lines is the largest: edges, and one line more than edges, from left to right.

    A line chosen next to an edge by rounding is at most the largest one: alarms are then a little too few, which errs
    on the safe side.
    """
    edges: list[float] = []
    kept: list[tuple[float, float]] = []
    for slope, level in sorted(zip(slopes.tolist(), levels.tolist(), strict=True)):
        if kept and kept[-1][0] == slope:  # the same slope and a higher level
            kept.pop()
            edges = edges[: max(0, len(kept) - 1)]
        while kept:
            edge = (kept[-1][1] - level) / (slope - kept[-1][0])
            if not edges or edge > edges[-1]:
                edges.append(edge)
                break
            kept.pop()
            edges.pop()
        kept.append((slope, level))
    return edges, kept


def dp_curve(epsilon: float, delta: float) -> Curve:
    """All that (epsilon, delta)-DP promises and nothing more."""
    return Curve(f"({epsilon:g}, {delta:g})-DP", ((epsilon, delta),))


def gaussian_delta(epsilons: Floats, mu: float) -> Floats:
    """Delta of a mu-Gaussian mechanism at each epsilon (Dong, Roth & Su 2022, Corollary 1; Balle & Wang 2018)."""
    if mu <= 0.0:
        return np.zeros_like(epsilons)
    first, second = -epsilons / mu + mu / 2.0, -epsilons / mu - mu / 2.0
    return np.maximum(0.0, ndtr(first) - np.exp(np.minimum(epsilons + log_ndtr(second), 0.0)))


def gaussian_curve(mu: float) -> Curve:
    """The curve of a Gaussian mechanism whose shift is mu standard deviations, at least 0."""
    epsilons = np.concatenate([[0.0], np.geomspace(1e-3, 1.0, READINGS - 1) * max(8.0 * mu + mu * mu / 2.0, 0.01)])
    return Curve(f"Gaussian, mu {mu:g}", _pairs(epsilons, gaussian_delta(epsilons, mu)))


def laplace_curve(scale_inverse: float) -> Curve:
    """The curve of a Laplace mechanism with sensitivity 1 and noise of scale ``1 / scale_inverse``: pure DP."""
    epsilons = np.linspace(0.0, scale_inverse, READINGS)
    return Curve(f"Laplace, {scale_inverse:g}-DP", _pairs(epsilons, -np.expm1((epsilons - scale_inverse) / 2.0)))


def curve_of_event(event: Event, adjacency: str = "zero_out", top: float = 12.0) -> Curve:
    """The run's own curve, from its accountant (``privacy/tradeoff.py``): what the statement claims, in full.

    Guarantee: every pair is kept by the mechanism that the event describes; deltas are rounded up.

    Args:
        event: of the plan or the statement, as ``accounting`` prices it.
        adjacency: ``zero_out`` or ``add_remove``.
        top: largest epsilon read.

    Raises:
        ConfigError: the event cannot be priced.
    """
    epsilons = np.concatenate([[0.0], np.geomspace(1e-3, 1.0, READINGS - 1) * top])
    deltas = Profile(event, adjacency, FINE).deltas(epsilons.tolist())
    return Curve("the run's own accountant", _pairs(epsilons, deltas))


def _pairs(epsilons: Floats, deltas: Floats | Sequence[float]) -> tuple[tuple[float, float], ...]:
    return tuple((float(e), min(1.0, max(0.0, float(d)))) for e, d in zip(epsilons, deltas, strict=True))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon of a mu-Gaussian mechanism at delta in (0, 1); 0 where mu shows nothing above delta.

    Rounded down by at most 1e-9, since bounds are lower bounds.
    """
    if mu <= 0.0 or float(gaussian_delta(np.zeros(1), mu)[0]) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while float(gaussian_delta(np.array([high]), mu)[0]) > delta:
        low, high = high, 2.0 * high
    while high - low > 1e-9 * max(1.0, high):
        middle = (low + high) / 2.0
        low, high = (middle, high) if float(gaussian_delta(np.array([middle]), mu)[0]) > delta else (low, middle)
    return low


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The mu whose Gaussian mechanism has this epsilon at delta in (0, 1); epsilon at least 0."""
    low, high = 0.0, 1.0
    at = np.array([epsilon])
    while float(gaussian_delta(at, high)[0]) < delta:
        low, high = high, 2.0 * high
        if not math.isfinite(high):
            raise ValueError(f"no Gaussian mechanism has epsilon={epsilon} at delta={delta}")
    while high - low > 1e-12 * high:
        middle = (low + high) / 2.0
        low, high = (low, middle) if float(gaussian_delta(at, middle)[0]) >= delta else (middle, high)
    return low
