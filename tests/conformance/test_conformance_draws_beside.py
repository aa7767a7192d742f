"""Draws that look at the units, at made-up tables of inclusions: found; honest ones are not, at the level stated."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dptrain.conformance.draws_beside import draws_beside_units
from dptrain.conformance.small_run import Seen, SmallRun
from dptrain.conformance.stand import RATE

STEPS, UNITS = 104, 40


def run(rate: str, seed: int) -> SmallRun:
    """Inclusions by a rule, beside norms that move slowly."""
    rng = np.random.default_rng(seed)
    norms, held, before = rng.normal(size=UNITS), np.zeros(UNITS), np.zeros(UNITS)
    steps = []
    for _ in range(STEPS):
        norms = 0.9 * norms + 0.4 * rng.normal(size=UNITS)
        longer = np.sign(norms - np.median(norms))
        q = RATE * {"honest": 1.0, "long": 1 + 0.4 * longer, "when drawn": 1 + 0.4 * held, "before": 1.4 - before}[rate]
        inside = rng.random(UNITS) < q
        held, before = np.where(inside, longer, held), inside.astype(float)
        draw = torch.from_numpy(np.flatnonzero(inside))
        steps.append(Seen(draw, torch.zeros(1), torch.from_numpy(norms.copy()), []))
    return SmallRun(steps, [], None, STEPS, 1.0, 1.0)


@pytest.mark.parametrize(("rate", "named"), [("long", "length"), ("when drawn", "length when"), ("before", "being in")])
def test_draws_that_look_at_units_are_found(rate: str, named: str) -> None:
    found = [draws_beside_units(run(rate, seed)) for seed in range(5)]
    assert not any(result.passed for result in found)
    assert sum(named in result.says for result in found) >= 3


def test_honest_draws_pass_and_their_p_values_are_uniform_or_larger() -> None:
    """300 runs: the share of p below 1/20 is at most 1/20 and three standard errors; none is near the level."""
    results = [draws_beside_units(run("honest", seed)) for seed in range(300)]
    assert all(result.passed for result in results)
    p = np.array([float(result.says.split(" laws, p ")[1].split(" ")[0]) for result in results])
    assert (p < 0.05).mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
    assert p.min() > 1e-5
