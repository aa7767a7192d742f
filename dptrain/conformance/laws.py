"""Conformance of chance: the noise is the Gaussian of the plan, fresh everywhere, and draws are Poisson's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch

from dptrain.conformance.recorder import watch
from dptrain.conformance.stand import Result, Stand
from dptrain.gradients.protocol import trainable

ALPHA = 1e-7
"""False-alarm rate of each test, two-sided; a sound subject fails one of them about once in a million runs."""
LARGEST_SCORE = 5.5
"""Standard score beyond which the sampling tests, whose laws are nearly normal, fail."""


def noise_law(stand: Stand, samples: int) -> Iterator[Result]:
    """What empty draws release: noise alone, of the planned deviation in every parameter, normal, never twice."""
    steps = max(4, min(64, math.ceil(samples / stand.count / 2)))
    nobody = torch.empty(0, dtype=torch.int64)
    both = [watch(stand, stand.trainer(8, steps), stand.all_rows(), lambda step: nobody) for _ in range(2)]
    found = [step for run in both for step in run]  # of two runs, so that a key that both have shows
    if any(len(step.released) != 1 for step in found):
        yield Result("noise", False, "an empty draw is not released once", 1)
        return
    blocks = np.stack([step.released[0].numpy() for step in found]) / stand.mechanism.noise_std  # (T, D)
    sizes = [p.numel() for p in trainable(stand.module).values()]
    yield deviation(blocks, sizes)
    yield _shape(blocks)
    yield _freshness(blocks)


def deviation(blocks: np.ndarray, sizes: list[int]) -> Result:
    """Exact chi-square of the whole and of every parameter by itself."""
    edges = np.cumsum([0, *sizes])
    parts = [(blocks[:, a:b], f"parameter {i}") for i, (a, b) in enumerate(pairwise(edges))]
    for block, where in [(blocks, "all"), *parts]:
        squares, n, p = float((block**2).sum()), block.size, _two_sided(block)
        if not p >= ALPHA / 2 / (1 if where == "all" else len(parts)):
            ratio = math.sqrt(squares / n) if squares == squares else math.nan
            says = f"{where}: {ratio:.4f} of the planned deviation over {n} samples (chi-square p {p:.1e})"
            known = _first(len(block), lambda steps, b=block: _two_sided(b[:steps]) < ALPHA / 2)
            return Result("noise, deviation", False, says, known)
    n = blocks.size
    ratio, half = math.sqrt(float((blocks**2).mean())), 2.0 / math.sqrt(2.0 * n)
    return Result(
        "noise, deviation", True, f"{ratio:.4f} ± {half:.4f} of the planned one, {n} samples (false alarms {ALPHA:.0e})"
    )


def _two_sided(block: np.ndarray) -> float:
    """Chi-square p of squares that have mean 1; 0 where a value is not a number."""
    from scipy.stats import chi2

    squares, n = float((block**2).sum()), block.size
    return 2.0 * min(float(chi2.cdf(squares, n)), float(chi2.sf(squares, n))) if math.isfinite(squares) else 0.0


def _first(most: int, fails: Callable[[int], bool]) -> int:
    """Fewest steps after which a test fails, that fails after ``most``."""
    return next((steps for steps in range(1, most) if fails(steps)), most)


def _shape(blocks: np.ndarray) -> Result:
    """Kolmogorov-Smirnov against the normal law, on at most 200,000 values, and the mean."""
    from scipy.stats import kstest, norm

    def p_of(steps: int) -> float:
        values = blocks[:steps].reshape(-1)[:200_000]
        p = float(kstest(values, "norm").pvalue)
        return min(p, float(2 * norm.sf(abs(values.mean()) * math.sqrt(len(values)))))

    p, samples = p_of(len(blocks)), min(blocks.size, 200_000)
    known = None if p >= ALPHA else _first(len(blocks), lambda steps: p_of(steps) < ALPHA)
    return Result("noise, normal", p >= ALPHA, f"p {p:.2g} over {samples} samples (at least {ALPHA:.0e})", known)


def _freshness(blocks: np.ndarray) -> Result:
    """The largest autocorrelation at any lag within all the steps' noise laid end to end."""
    blocks = blocks[:, : max(1, (1 << 22) // len(blocks))]  # of every step, where they are too many
    values = blocks.reshape(-1)
    n = len(values)
    spectrum = np.fft.rfft(values, 2 * n)
    products = np.fft.irfft(np.abs(spectrum) ** 2, 2 * n)[1 : n - 32]
    scores = np.abs(products) / np.sqrt(np.arange(n - 1, 32, -1)) / max(float((values**2).mean()), 1e-300)
    # Short overlaps are products of few normals, with longer tails than a normal: the limit covers them.
    limit = 7.5
    lag = int(scores.argmax()) + 1
    says = f"largest autocorrelation {scores.max():.1f} deviations, of {len(scores)} lags (limit {limit:g})"
    where = f"; at lag {lag}, {lag / blocks.shape[1]:.2f} steps" if scores.max() > limit else ""
    known = math.ceil(lag / blocks.shape[1]) + (lag % blocks.shape[1] == 0) if where else None
    return Result("noise, fresh", bool(scores.max() <= limit), says + where, known)


def sampling_law(stand: Stand, draws: int) -> Iterator[Result]:
    """Inclusions of the run's own sampler: their number, their spread over steps and units, and steps' overlap."""
    trainer, units, q = stand.trainer(8, draws), stand.rows.num_units, stand.plan.sampling_rate
    included = np.zeros((draws, units))
    for step in range(draws):
        drawn = trainer.draw(step).numpy()
        if len(drawn) and (drawn.min() < 0 or drawn.max() >= units):
            yield Result("sampling", False, f"step {step + 1} draws a unit that does not exist", step + 1)
            return
        np.add.at(included[step], drawn, 1)
    if included.max(initial=0) > 1:
        yield Result("sampling", False, "a unit is drawn twice in one draw", int(included.max(1).argmax()) + 1)
        return
    again = stand.trainer(8, draws)
    other = np.stack([np.isin(np.arange(units), again.draw(step).numpy()) for step in range(min(draws, 400))])
    scores = _scores(included, other, q)
    worst = max(scores, key=lambda name: abs(scores[name]))
    says = f"{worst} is {scores[worst]:+.1f} deviations from Poisson's, the most of {len(scores)} tests"
    says += f" over {draws} draws of {units} units (limit {LARGEST_SCORE})"
    good, known = abs(scores[worst]) <= LARGEST_SCORE, None
    if not good:
        tried = [n for n in (2**k for k in range(5, 30)) if n < draws]
        fails = (n for n in tried if max(map(abs, _scores(included[:n], other[:n], q).values())) > LARGEST_SCORE)
        known = next(fails, draws)
    yield Result("sampling", good, says, known)


def _scores(included: np.ndarray, other: np.ndarray, q: float) -> dict[str, float]:
    """Standard scores of (T, U) inclusions of one run, and of the first steps of another."""
    draws, units = included.shape
    variance = q * (1 - q)
    scores = {
        "rate": float((included - q).sum() / math.sqrt(draws * units * variance)),
        "sizes of draws": _dispersion(included.sum(1), units, q),
        "inclusions of units": _dispersion(included.sum(0), draws, q),
    }
    for lag in (1, 2, 3):
        scores[f"overlap {lag} apart"] = _overlap(included, q, lag)
    same = ((included[: len(other)] - q) * (other - q)).sum()
    scores["overlap with another run"] = float(same / (variance * math.sqrt(other.size)))
    pairs = (included - q).T @ (included - q) / (variance * math.sqrt(draws))
    apart = pairs[np.triu_indices(units, 1)]
    scores["two units together"] = float(apart[np.abs(apart).argmax()]) * LARGEST_SCORE / _largest_of(len(apart))
    return scores


def _dispersion(counts: np.ndarray, trials: int, q: float) -> float:
    """Score of the sum of squares of Binomial(trials, q) counts about their mean."""
    variance = trials * q * (1 - q)
    fourth = 3 * variance**2 + variance * (1 - 6 * q * (1 - q))
    squares = (counts - trials * q) ** 2
    return float((squares - variance).sum() / math.sqrt(len(counts) * (fourth - variance**2)))


def _largest_of(count: int) -> float:
    """Score that the largest of so many passes with the chance that one passes ``LARGEST_SCORE``."""
    from scipy.stats import norm

    return float(norm.isf(norm.sf(LARGEST_SCORE) / max(1, count)))


def _overlap(included: np.ndarray, q: float, lag: int) -> float:
    """Score of the products of centred inclusions, a number of steps apart, which have mean 0 and no covariance."""
    centred = included - q
    products = (centred[lag:] * centred[:-lag]).sum()
    return float(products / (q * (1 - q) * math.sqrt((len(included) - lag) * included.shape[1])))
