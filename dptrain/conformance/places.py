"""Conformance of the noise place by place: every coordinate, every parameter and every step, and each rounded value."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from dptrain.conformance.laws import deviation
from dptrain.conformance.regular import least, regularity
from dptrain.conformance.stand import Result, Stand
from dptrain.errors import ConfigError
from dptrain.gradients.protocol import trainable
from dptrain.keystream import Keystream
from dptrain.noise.protocol import Noise
from dptrain.training.assemble import build_noise

ALPHA = 1e-7
"""False-alarm rate of each check."""
SAMPLES = 1 << 20
"""Values looked at: they tell a deviation 0.4 % low."""
RUN_BITS, FLOAT_BITS = 64.0, 20.0
"""Chance that two runs of values are equal, as a power of two: with 2^20 of them and hashes of 64 bits, any two are
with probability 6e-8. Bits of a floating-point value that are surely random."""
COARSE = 8.0
"""Deviation, in grid steps, at which every single value of the rounded Gaussian comes often enough to be counted."""


def noise_places(stand: Stand) -> Iterator[Result]:
    """Noise straight from a run's source, a thousand steps of it where there are few parameters."""
    width = min(stand.count, SAMPLES)
    steps = int(np.clip(SAMPLES // width, 4, 1000))
    trainer = stand.trainer(8, steps, copied=False)
    assert trainer.noise is not None
    unit = 1.0 if trainer.grid is None else trainer.grid
    rows = [_first(trainer.noise, step, stand.count, width) for step in range(steps)]
    blocks = np.stack(rows) * (unit / stand.mechanism.noise_std)  # (T, D)
    sizes = [p.numel() for p in trainable(stand.module).values()]
    edges = np.minimum(np.cumsum([0, *sizes]), width)
    yield replace(deviation(blocks, [int(n) for n in np.diff(edges) if n]), check="noise, each parameter")
    places, turns = _p_values((blocks**2).sum(0), steps), _p_values((blocks**2).sum(1), width)
    if places.min() * width < turns.min() * steps:
        p, where = 2 * width * float(places.min()), f"coordinate {int(places.argmin())}"
    else:
        p, where = 2 * steps * float(turns.min()), f"step {int(turns.argmin()) + 1}"
    says = f"{where} is furthest of {width} coordinates and {steps} steps, p {min(p, 1.0):.2g} (at least {ALPHA:.0e})"
    yield Result("noise, places", p >= ALPHA, says)
    says = f"{steps} steps of {width} values"
    yield least("noise, regular", regularity(blocks, "steps"), ALPHA, says)
    yield never_twice(np.stack(rows), stand.mechanism.noise_std / unit, trainer.grid is not None)


def never_twice(blocks: np.ndarray, std: float, on_grid: bool) -> Result:
    """No run of a few values comes again anywhere, as it was or with its sign turned: exact, so one repeat is enough.

    Args:
        blocks: (T, D) noise, in whole grid steps where there is a grid.
        std: its deviation, in the same unit.
        on_grid: whether values are whole numbers.
    """
    values = np.abs(blocks).reshape(-1)
    bits = math.log2(2.0 * max(std, 1.0)) if on_grid else FLOAT_BITS  # of a value without its sign
    length = max(2, math.ceil(RUN_BITS / bits))
    words = np.nan_to_num(values).astype(np.int64).view(np.uint64) if on_grid else values.view(np.uint64)
    words = words ^ (words >> np.uint64(32))  # float32 values leave the low half empty, which a product would keep so
    factors = np.frombuffer(os.urandom(8 * length), dtype=np.uint64) | np.uint64(1)
    windows = len(values) - length + 1
    hashed = np.zeros(max(windows, 0), dtype=np.uint64)
    for place in range(length):
        hashed += words[place : place + windows] * factors[place]  # modulo 2^64
    hashed.sort()
    twice = int((hashed[1:] == hashed[:-1]).sum())
    says = (
        f"{twice} of {len(hashed)} runs of {length} values in {len(blocks)} steps come twice (false alarms {ALPHA:.0e})"
    )
    return Result("noise, never twice", twice == 0, says)


def _first(noise: Noise, step: int, count: int, width: int) -> np.ndarray:
    """The first values (width,) of a step's noise."""
    kept: list[np.ndarray] = []
    for piece in noise.pieces(step, count):
        kept.append(piece.double().cpu().numpy().copy())  # a source may reuse its memory
        if sum(map(len, kept)) >= width:
            break
    return np.concatenate(kept)[:width]


def _p_values(squares: np.ndarray, freedom: int) -> np.ndarray:
    """Two-sided chi-square p; 0 where a sum of squares is not a number."""
    from scipy.stats import chi2

    return np.nan_to_num(2 * np.minimum(chi2.cdf(squares, freedom), chi2.sf(squares, freedom)), nan=0.0)


def rounding_law(stand: Stand) -> Result:
    """The run's kind of noise on a grid so coarse that each value can be counted: the rounded Gaussian, value by value.

    A grid of the run's own has some 10^5 steps a deviation, where a rounding that leans to one side cannot be seen.
    """
    from scipy.stats import chi2, norm

    if stand.plan.noise != "secure":
        return Result("noise, rounding", None, f"privacy.noise={stand.plan.noise} has no grid")
    plan = replace(stand.plan, steps=1)
    try:
        noise = build_noise(plan, Keystream(), SAMPLES, stand.mechanism.noise_std / COARSE, torch.device("cpu"))
    except ConfigError:
        return Result("noise, rounding", None, "delta is too small for so many values")
    values = noise.draw(0, SAMPLES).double().numpy()
    whole = np.round(values)
    edge = int(4 * COARSE)
    counts = np.bincount(np.clip(whole, -edge, edge).astype(np.int64) + edge, minlength=2 * edge + 1)
    bounds = np.concatenate([[-np.inf], np.arange(-edge, edge) + 0.5, [np.inf]]) / COARSE
    expected = SAMPLES * np.diff(norm.cdf(bounds))
    p = float(chi2.sf(((counts - expected) ** 2 / expected).sum(), 2 * edge))
    good = p >= ALPHA and bool((whole == values).all())
    says = f"p {p:.2g} over {2 * edge + 1} values of {SAMPLES} samples at {COARSE:g} steps a deviation"
    return Result("noise, rounding", good, f"{says} (at least {ALPHA:.0e})")
