"""The tests themselves: from the sums of a ``Tally`` to one p-value each, exact under a clean run.

With the planned noise as the unit, a clean block is a vector of independent standard normals, shifted by a known effect
where a dummy was drawn, and draws do not depend on noise. Then, given the draws, within the three groups (not drawn;
drawn and loud; drawn and quiet) means and sums of squares about them are independent (Cochran's theorem), and:

    noise     the sum of squares is chi-square, one degree of freedom less than coordinates for each group
    scale     the two drawn groups' means, combined as a common factor on their effects, are normal
    contrast  what is left of them, loud against quiet, is normal and independent of it
    offset    the mean of the group that was not drawn is normal
    repeat    two steps' noise agrees in every coordinate looked at: no chance in it
    reuse     a step's noise signed as an earlier step's (or other coordinates of its own) sums to a normal
    total     the number of inclusions is binomial
    repeats   the number of pairs of inclusions has a law that is tabled (``inclusions``)
"""

from __future__ import annotations

import numpy as np

from dptrain.selfcheck.inclusions import repeats_p, total_p
from dptrain.selfcheck.tally import Tally

SHARES = {
    "noise": 0.35,
    "scale": 0.20,
    "contrast": 0.10,
    "offset": 0.05,
    "reuse": 0.10,
    "total": 0.10,
    "repeats": 0.10,
}
"""What part of a look's false alarms each test may make; ``repeat`` makes none."""
CULPRITS = {
    "repeat": "reuse",
    "total": "sampling",
    "repeats": "sampling",
    "contrast": "clipping",
    "scale": "averaging",
    "reuse": "reuse",
    "offset": "averaging",
    "noise": "noise",
}
"""Test -> what it accuses. Where several speak, the first one here is believed: noise that repeats also has a wrong
variance, and units that are not clipped also have a wrong mean."""
SAME = 1e-5
"""Two steps' noise is a repeat where ``PRINT`` coordinates agree to this part of a deviation (by chance: 1e-40)."""


def p_values(tally: Tally, rate: float) -> dict[str, np.ndarray]:
    """(R,) p-value of each test, in [0, 1], at or above its nominal level under a clean run; not a number counts as 0.

    Args:
        tally: of the steps so far, at least one.
        rate: q.
    """
    scale, contrast, offset = _means(tally)
    found = {
        "noise": _noise(tally),
        "scale": _normal(scale),
        "contrast": _normal(contrast),
        "offset": _normal(offset),
        "repeat": np.where(_repeated(tally), 0.0, 1.0),
        "reuse": _reuse(tally),
        "total": total_p(tally.included.sum(1), tally.size, tally.steps, rate),
        "repeats": repeats_p(tally.included, tally.steps, rate),
    }
    return {name: np.nan_to_num(p, nan=0.0) for name, p in found.items()}


def spread(tally: Tally) -> tuple[np.ndarray, np.ndarray]:
    """(R,) sum of squares about the groups' means, and (R,) its degrees of freedom."""
    filled = np.maximum(tally.count, 1.0)
    squares = (tally.square - tally.total**2 / filled).sum(1)
    return squares, np.maximum(tally.count - 1.0, 0.0).sum(1)


def noise_ratio(tally: Tally, run: int = 0, level: float = 0.95) -> tuple[float, float, float]:
    """Measured over planned deviation of the noise, with its exact interval at that level."""
    from scipy.special import gammainccinv, gammaincinv

    squares, degrees = spread(tally)
    value, half = float(squares[run]), float(degrees[run]) / 2.0
    tail = (1.0 - level) / 2.0
    low, high = (value / 2.0 / limit for limit in (gammainccinv(half, tail), gammaincinv(half, tail)))
    return (value / (2.0 * half)) ** 0.5, float(low) ** 0.5, float(high) ** 0.5


def _noise(tally: Tally) -> np.ndarray:
    from scipy.special import gammainc, gammaincc

    squares, degrees = spread(tally)
    half = np.maximum(degrees, 1.0) / 2.0
    two_sided = 2.0 * np.minimum(gammainc(half, squares / 2.0), gammaincc(half, squares / 2.0))
    return np.where(degrees > 0, np.minimum(two_sided, 1.0), 1.0)


def _means(tally: Tally) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(R,) standard normals each: scale, contrast, offset; 0 where nothing was seen."""
    effect = tally.effect[:2]  # of a loud one, of a quiet one
    count, off = tally.count[:, 1:], tally.total[:, 1:] - tally.count[:, 1:] * effect
    weight = (count * effect**2).sum(1)
    both = (count > 0).all(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(weight > 0, (off * effect).sum(1) / np.sqrt(weight), 0.0)
        factors = off / count / effect
        error = np.sqrt((1.0 / (count * effect**2)).sum(1))
        contrast = np.where(both, (factors[:, 0] - factors[:, 1]) / error, 0.0)
        offset = np.where(tally.count[:, 0] > 0, tally.total[:, 0] / np.sqrt(tally.count[:, 0]), 0.0)
    return scale, contrast, offset


def _reuse(tally: Tally) -> np.ndarray:
    """The least p of each lag and shift, times their number."""
    terms = tally.lag_count[tally.lag_count > 0]
    scores = [tally.lag[:, : len(terms)] / np.sqrt(terms)]
    scores.append(tally.shift / np.sqrt([tally.steps * (tally.size - shift) for shift in tally.shifts]))
    each = _normal(np.concatenate(scores, axis=1))
    return np.minimum(1.0, each.min(1) * each.shape[1])


def _repeated(tally: Tally) -> np.ndarray:
    """(R,) whether two steps have the same noise, however far apart they are."""
    prints = np.stack(tally.prints, axis=1)  # (R, T, PRINT)
    order = np.argsort(prints[:, :, 0], axis=1)
    sorted_prints = np.take_along_axis(prints, order[:, :, None], axis=1)
    near = SAME * (1.0 + float(np.abs(tally.effect).max()))
    found = np.zeros(len(prints), dtype=bool)
    for apart in range(1, min(5, tally.steps)):  # equal ones lie side by side, but for a chance neighbour between
        same = np.abs(sorted_prints[:, apart:] - sorted_prints[:, :-apart]) < near
        found |= np.any(np.all(same, axis=2), axis=1)
    return found


def _normal(score: np.ndarray) -> np.ndarray:
    """Two-sided p of standard normals."""
    from scipy.special import ndtr

    return 2.0 * ndtr(-np.abs(score))
