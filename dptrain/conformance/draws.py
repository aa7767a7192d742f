"""Conformance of draws in small things: errors of the rate, empty and large draws, first and last steps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from dptrain.conformance.stand import Result, Stand
from dptrain.data.source import Rows

ALPHA = 1e-7
"""False-alarm rate of each check, two-sided."""
MANY, DRAWS = 20_000, 100
"""Units of the made-up crowd, and its draws: 5.3 deviations of their number are 0.65 % of the rate."""
SPARSE = 400
"""Draws that are empty about one time in three."""
SIZED = 6000
"""Draws whose sizes are counted."""
RUNS, PLANNED = 24, 8
"""Runs whose single steps are compared, and the steps of each."""


def two_sided(seen: int, trials: int, rate: float) -> float:
    """Exact p of a binomial count."""
    from scipy.stats import binom

    return min(1.0, 2 * min(float(binom.cdf(seen, trials, rate)), float(binom.sf(seen - 1, trials, rate))))


def draws_law(stand: Stand) -> Iterator[Result]:
    """All of them, of the run's own sampler."""
    yield rate_of_many(stand)
    yield rate_of_many(stand.at_rate(stand.asked.sampling_rate), "sampling, planned rate")
    yield sizes_of_draws(stand)
    yield empty_draws(stand)
    yield each_step(stand)


def rate_of_many(stand: Stand, name: str = "sampling, rate") -> Result:
    """Inclusions among many units, none of whose rows is looked at."""
    first = stand.rows.inputs[:1]
    crowd = Rows(
        first.expand(MANY, *first.shape[1:]),
        stand.rows.targets[:1].expand(MANY, *stand.rows.targets.shape[1:]),
        torch.arange(MANY),
    )
    trainer, q = stand.trainer(8, DRAWS, rows=crowd, copied=False), stand.plan.sampling_rate
    seen = sum(len(trainer.draw(step)) for step in range(DRAWS))
    p = two_sided(seen, MANY * DRAWS, q)
    says = f"{seen / MANY / DRAWS / q:.4f} of the planned one over {MANY * DRAWS} chances, p {p:.2g}"
    return Result(name, p >= ALPHA, f"{says} (false alarms {ALPHA:.0e})")


def empty_draws(stand: Stand) -> Result:
    """At a rate of one unit a draw, as many draws are empty as a Poisson sampler leaves."""
    units = stand.rows.num_units
    sparse = stand.at_rate(1.0 / units)
    trainer = sparse.trainer(8, SPARSE, copied=False)
    empty = sum(len(trainer.draw(step)) == 0 for step in range(SPARSE))
    expected = (1.0 - 1.0 / units) ** units
    p = two_sided(empty, SPARSE, expected)
    says = f"{empty} of {SPARSE} draws are empty at one unit a draw ({SPARSE * expected:.0f} expected), p {p:.2g}"
    return Result("sampling, empty draws", p >= ALPHA, f"{says} (false alarms {ALPHA:.0e})")


def sizes_of_draws(stand: Stand) -> Result:
    """How many draws have each size, the largest too: a binomial's."""
    from scipy.stats import binom, chi2

    units, q = stand.rows.num_units, stand.plan.sampling_rate
    trainer = stand.trainer(8, SIZED, copied=False)
    sizes = [len(trainer.draw(step)) for step in range(SIZED)]
    expected = SIZED * binom.pmf(np.arange(units + 1), units, q)
    cells = np.cumsum([0, *_cells(expected)])
    counts = np.add.reduceat(np.bincount(np.clip(sizes, 0, units), minlength=units + 1), cells[:-1])
    wanted = np.add.reduceat(expected, cells[:-1])
    p = float(chi2.sf(((counts - wanted) ** 2 / wanted).sum(), len(wanted) - 1))
    says = f"p {p:.2g} of the sizes of {SIZED} draws, {min(sizes)} to {max(sizes)} units, in {len(wanted)} classes"
    return Result("sampling, sizes", p >= ALPHA, f"{says} (at least {ALPHA:.0e})")


def _cells(expected: np.ndarray) -> list[int]:
    """Lengths of runs of neighbouring sizes that are expected twenty times or more together."""
    lengths, held = [0], 0.0
    for count in expected:
        lengths[-1] += 1
        held += count
        if held >= 20.0:
            lengths.append(0)
            held = 0.0
    last = lengths.pop()
    return [*lengths[:-1], lengths[-1] + last]


def each_step(stand: Stand) -> Result:
    """The same rate at every step of a run, the first and the last too."""
    units, q = stand.rows.num_units, stand.plan.sampling_rate
    seen = np.zeros(PLANNED, dtype=np.int64)
    for _ in range(RUNS):
        trainer = stand.trainer(8, PLANNED, copied=False)
        seen += [len(trainer.draw(step)) for step in range(PLANNED)]
    least = [two_sided(int(count), RUNS * units, q) for count in seen]
    worst = int(np.argmin(least))
    says = f"step {worst + 1} of {PLANNED} is furthest: {seen[worst] / RUNS / units / q:.2f} of the rate in {RUNS} runs"
    good = least[worst] >= ALPHA / PLANNED
    return Result("sampling, each step", good, f"{says}, p {least[worst]:.2g}", None if good else worst + 1)
