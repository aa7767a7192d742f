"""Whether units are drawn independently at every distance: in a draw, from draw to draw, and from run to run.

Random words come in buffers, chunks and threads, and what is not filled again, or filled from the same place, gives
units that lie far apart one fate. So inclusions of draws laid end to end are held against themselves at all lags at
once, and against their mirror image about every place, among more units than a buffer is likely to have words.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dptrain.conformance.observe import fills
from dptrain.conformance.stand import Result, Stand
from dptrain.data.source import Rows
from dptrain.errors import ConfigError
from dptrain.keystream import Stream

ALPHA = 1e-7
"""False-alarm rate of all distances of a crowd together, at most."""
CROWDS = (((1 << 20) + (1 << 14) + 1, 1, 1), (20_011, 2, 20))
"""Units, runs, and draws of each: beyond 2^20 units, and over many draws; no buffer's length divides the numbers."""
LOOKED_AT = 5.0
"""Deviations below which a lag is not looked at closely: it is far from failing."""
MOST = 1000
"""Lags looked at closely, the furthest ones."""


def draws_far_apart(stand: Stand) -> Result:
    """Sums of products of centred inclusions, at every distance; 64-bit words of the large crowd's draw, none twice.

    False alarms: at most 1e-7 for each crowd, and 4e-8 for a million words (birthday bound).
    """
    name, told = "draws, far apart", list[str]()
    for number, (units, runs, draws) in enumerate(CROWDS):
        try:
            words = list[np.ndarray]()
            with fills(partial(_keep, words)):
                inside = np.concatenate([_inclusions(stand, units, draws) for _ in range(runs)])
        except ConfigError:
            return Result(name, None, f"this grid is too fine for {units} units")
        p, where = furthest(inside, stand.plan.sampling_rate)
        where = f"{where} are furthest among {units} units and {runs * draws} draws, p {p:.2g}"
        if p < ALPHA:
            return Result(name, False, f"{where} over all of them (at least {ALPHA:.0e})")
        told.append(where)
        if number == 0:
            found = np.sort(np.concatenate([np.empty(0, np.uint64), *words]))  # quicker than np.unique
            if twice := int((found[1:] == found[:-1]).sum()):
                return Result(name, False, f"{twice} of {len(found)} words that draws are made of come twice")
    return Result(name, True, f"{'; '.join(told)} (at least {ALPHA:.0e})")


def _inclusions(stand: Stand, units: int, draws: int) -> np.ndarray:
    """(draws x units,) of one run, draw behind draw: 1 where a unit is in it. No row of the crowd is looked at."""
    first = stand.rows.inputs[:1]
    slim = first.new_zeros([1] * first.dim()).expand(units, *[1] * (first.dim() - 1))
    targets = stand.rows.targets[:1].expand(units, *stand.rows.targets.shape[1:])
    trainer = stand.trainer(8, draws, rows=Rows(slim, targets, torch.arange(units)), copied=False)
    inside = np.zeros(draws * units)
    for step in range(draws):
        drawn: Tensor = trainer.draw(step)
        np.add.at(inside, drawn.numpy() + step * units, 1.0)
    return inside


def _keep(words: list[np.ndarray], _: Stream, filled: np.ndarray) -> None:
    """Notes the 64-bit words of what a key stream gave."""
    if filled.nbytes % 8 == 0:
        words.append(filled.view(np.uint64).reshape(-1).copy())


def furthest(inside: np.ndarray, q: float) -> tuple[float, str]:
    """At least the p of all lags and all mirrors together, and which of them is furthest.

    Args:
        inside: (n,) independent, each 1 with probability q and else 0, if draws are what they should be.
        q: in (0, 1).

    Returns:
        2 (3 n - 4) times the smallest of Chernoff's bounds below, at most 1; where it was found.
    """
    from scipy import fft

    n, centred = len(inside), inside - q
    length = fft.next_fast_len(2 * n, real=True)
    spectrum: Any = fft.rfft(centred, length)
    lags = np.asarray(fft.irfft(spectrum.real**2 + spectrum.imag**2, length))[1:n]  # of n - lag products each
    mirrors = np.asarray(fft.irfft(spectrum**2, length))[1 : 2 * n - 2]  # i beside sum - i: every pair twice
    mirrors[1::2] -= centred[1 : n - 1] ** 2  # where a place is its own image
    places = np.arange(1, 2 * n - 2)
    families = {
        "places {} apart": (lags, np.arange(n - 1, 0, -1)),
        "places {} together": (mirrors / 2.0, (np.minimum(places, 2 * n - 2 - places) + 1) // 2),
    }
    tests = sum(len(sums) for sums, _ in families.values())
    least, where = 0.0, "no places"
    for name, (sums, pairs) in families.items():
        scores = np.abs(sums) / (q * (1.0 - q) * np.sqrt(pairs))
        closest = np.flatnonzero(scores > LOOKED_AT)
        for at in closest[np.argsort(scores[closest])[-MOST:]]:
            bound = _log_bound(float(sums[at]), int(pairs[at]), q)
            if bound < least:
                least, where = bound, name.format(at + 1)
    return min(1.0, 2.0 * tests * math.exp(max(least, -700.0))), where


def _log_bound(total: float, pairs: int, q: float) -> float:
    """Logarithm of at least the chance of so large a sum of ``pairs`` products of two values, on its own side of 0.

    The products of one lag fall into chains, in each of which neighbours share a factor; those of a mirror share
    none, and are chains of one. For a chain of k of them E exp(t S) is v' T^k v with T = (sqrt(p_a p_b) exp(t a b))
    over the two values a, b and the unit vector v = (sqrt(p_a)), so at most the k-th power of T's largest eigenvalue;
    chains are independent, and Chernoff's bound follows.
    """
    most = min(40.0 / (q * (1.0 - q)), 300.0 / max(q, 1.0 - q) ** 2)  # so that no exponential leaves float64
    t = math.copysign(1.0, total) * np.geomspace(1e-6, 1.0, 3000) * most
    low, high = (1.0 - q) * np.exp(t * q**2), q * np.exp(t * (1.0 - q) ** 2)
    cross = q * (1.0 - q) * np.exp(-2.0 * t * q * (1.0 - q))
    largest = (low + high) / 2.0 + np.sqrt(((low - high) / 2.0) ** 2 + cross)
    return min(0.0, float((pairs * np.log(largest) - t * total).min()))
