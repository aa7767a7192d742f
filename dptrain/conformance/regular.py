"""Noise that is too regular, or too wild, at any scale: exact laws of sums and squares of blocks, both tails.

A vector of independent standard normals, turned by any rotation that does not look at it, is one again. Haar's (1910)
takes it apart by scales: differences of neighbouring values, of pairs, of fours, ..., and the mean. At every scale the
coefficients' energy is chi-square with as many degrees of freedom as there are coefficients, exactly; noise whose
neighbours, blocks or steps hang together has too much of it at one scale and too little at another. Squares of blocks
are chi-square too: turned into normals they must scatter as such, no less (noise that is brought to one norm) and no
more, and must not follow one another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dptrain.conformance.stand import Result

BLOCKS = (8, 64, 512, 4096, 32768)
"""Lengths of the blocks whose squares are looked at, beside whole rows."""
FEWEST = 8
"""Terms from which on a law is asked."""


@dataclass(frozen=True)
class Law:
    """One law: what it is of, and its two-sided p, exact or larger."""

    name: str
    p: float


def least(check: str, tests: Sequence[Law], alpha: float, says: str) -> Result:
    """The smallest p of several tests, times their number (Bonferroni), against alpha."""
    worst = min(tests, key=lambda test: test.p if math.isfinite(test.p) else -1.0)
    p = min(1.0, worst.p * len(tests)) if math.isfinite(worst.p) else 0.0
    told = f"{worst.name} is least likely of {len(tests)} laws, p {p:.2g} over all of them, {says}"
    return Result(check, p >= alpha, f"{told} (at least {alpha:.0e})")


def regularity(blocks: np.ndarray, of: str) -> list[Law]:
    """Laws of (T, D) values that should be independent standard normals; along the rows, and over them.

    Args:
        blocks: a row a step, in planned deviations.
        of: what a row is, in words.
    """
    steps, width = blocks.shape
    if not np.isfinite(blocks).all():
        return [Law("values that are not numbers", 0.0)]
    tests = _energies(blocks, f"neighbours within {of}") + _energies(blocks.T, f"neighbours over {of}")
    for name, table in ((f"sums of whole {of}", blocks), (f"sums of coordinates over {of}", blocks.T)):
        tests.append(chi_square(name, float((table.sum(1) ** 2).sum()) / table.shape[1], len(table)))
    tests += _squares(blocks, f"whole {of}") + _squares(blocks.T, f"coordinates over {of}")
    for length in BLOCKS:
        if length < width and steps * (width // length) >= FEWEST:
            cut = blocks[:, : width // length * length].reshape(-1, length)
            tests += _squares(cut, f"blocks of {length} within {of}", followed=width // length)
    return tests


def _energies(blocks: np.ndarray, name: str) -> list[Law]:
    """Haar coefficients of every row, scale by scale; what is left over at a scale is left out."""
    tests, values, length = list[Law](), blocks, 1
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        first, second = values[:, 0 : 2 * half : 2], values[:, 1 : 2 * half : 2]
        detail, values = (first - second) * math.sqrt(0.5), (first + second) * math.sqrt(0.5)
        length *= 2
        tests.append(chi_square(f"{name}, differences of {length // 2}", float((detail**2).sum()), detail.size))
    tests.append(chi_square(f"{name}, sums of {length}", float((values**2).sum()), values.size))
    return tests


def _squares(rows: np.ndarray, name: str, followed: int = 1) -> list[Law]:
    """Squared norms of rows, as normals: their scatter, their mean, and whether one follows another."""
    from scipy.stats import chi2, norm

    if len(rows) < FEWEST:
        return []
    squares = (rows**2).sum(1)
    low, high = chi2.cdf(squares, rows.shape[1]), chi2.sf(squares, rows.shape[1])
    scores = np.where(low < 0.5, norm.ppf(np.maximum(low, 1e-300)), norm.isf(np.maximum(high, 1e-300)))
    tests = [chi_square(f"sizes of {name}", float((scores**2).sum()), len(scores))]
    for lag in {1, followed}:
        if len(scores) - lag >= 20 * FEWEST:
            total = float((scores[lag:] * scores[:-lag]).sum())
            tests.append(Law(f"sizes of {name}, {lag} apart", product_p(total, len(scores))))
    return tests


def chi_square(name: str, squares: float, freedom: int) -> Law:
    """Of a sum of squares of that many standard normals, two-sided; 0 where it is not a number."""
    from scipy.stats import chi2

    p = 2.0 * min(float(chi2.cdf(squares, freedom)), float(chi2.sf(squares, freedom)))
    return Law(name, p if math.isfinite(squares) else 0.0)


def normal(name: str, score: float) -> Law:
    """Of one standard normal, two-sided; 0 where it is not a number."""
    from scipy.stats import norm

    return Law(name, float(2.0 * norm.sf(abs(score))) if math.isfinite(score) else 0.0)


def product_p(score: float, nodes: int) -> float:
    """At least the two-sided p of a sum of products of neighbours among that many standard normals.

    Chernoff's bound. With S the sum, E exp(t S) is the determinant of a tridiagonal matrix to the power -1/2, which is
    at least r^nodes with r = (1 + sqrt(1 - 4 t^2)) / 2, for |t| < 1/2; chains that do not touch multiply.
    """
    t = np.linspace(0.0, 0.5, 2001)[:-1]
    exponent = t * abs(score) + 0.5 * nodes * np.log((1.0 + np.sqrt(1.0 - 4.0 * t**2)) / 2.0)
    return min(1.0, 2.0 * math.exp(-float(exponent.max())))
