"""Whether who is drawn has to do with what the units are: a draw must not look at them."""

from __future__ import annotations

import math

import numpy as np

from dptrain.conformance.regular import least, normal
from dptrain.conformance.small_run import SmallRun
from dptrain.conformance.stand import RATE, Result

ALPHA = 1e-7
"""False-alarm rate of all these laws together."""


def draws_beside_units(run: SmallRun) -> Result:
    """Inclusions in a step, against what was known of the units before it: gradients' norms, and the draw before.

    A unit is in a draw with probability q, whatever it is. For weights w that are settled before a draw, the sum of
    w (included - q) over units and steps is a sum of martingale differences, and close to normal with variance
    q (1 - q) times the sum of w^2.
    """
    inside = np.zeros((len(run.steps), len(run.steps[0].norms)))
    for number, step in enumerate(run.steps):
        inside[number, step.draw.numpy()] = 1.0
    norms = np.stack([step.norms.numpy() for step in run.steps])
    longer = np.sign(norms - np.median(norms, axis=1, keepdims=True))
    drawn = inside - RATE
    latest = _when_last_drawn(longer, inside)
    weights = {
        "its gradient's length": (longer, inside),
        "its gradient's length in the step before": (longer[:-1], inside[1:]),
        "its gradient's length when it was last drawn": (latest[:-1], inside[1:]),
        "its being in the draw before": (drawn[:-1], inside[1:]),
        "the size of the draw before": (np.broadcast_to(drawn[:-1].sum(1, keepdims=True), drawn[1:].shape), inside[1:]),
    }
    laws = []
    for name, (weight, found) in weights.items():
        size = math.sqrt(RATE * (1.0 - RATE) * float((weight**2).sum()))
        score = float((weight * (found - RATE)).sum()) / size if size else 0.0
        laws.append(normal(f"a unit's draw beside {name}", score))
    return least("draws, beside units", laws, ALPHA, f"{len(inside)} draws of {inside.shape[1]} units")


def _when_last_drawn(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """(steps, units): the value of the latest step, up to this one, that the unit was drawn in; 0 before the first."""
    out, held = np.zeros_like(values), np.zeros(values.shape[1])
    for step, drawn in enumerate(inside):
        held = np.where(drawn > 0, values[step], held)
        out[step] = held
    return out
