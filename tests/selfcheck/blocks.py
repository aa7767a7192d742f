"""Released blocks as a run with a given fault would give them; simulated, many runs side by side."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

SIZE, RATE = 256, 0.05
EFFECT = np.where(np.arange(SIZE) % 2 == 0, 1.0, 0.5) / 1.001
"""Of a drawn dummy at sigma = 1: C, or C/2, over C (1 + s)."""


def simulated(
    runs: int, steps: int, fault: str = "none", seed: int = 0, rate: float = RATE
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(R, k) blocks in planned noise deviations and which dummies were drawn, step after step."""
    random = np.random.default_rng(seed)
    first = random.standard_normal((runs, SIZE))
    order = np.tile(np.arange(SIZE), (runs, 1))
    at_once = round(SIZE * rate)
    for step in range(steps):
        noise = random.standard_normal((runs, SIZE))
        drawn = random.random((runs, SIZE)) < rate
        effect = EFFECT
        if fault.startswith("noise"):
            noise = noise * float(fault.removeprefix("noise"))
        elif fault == "reuse":
            noise = first
        elif fault == "no clipping":
            effect = np.where(np.arange(SIZE) % 2 == 0, 20.0, 0.5) / 1.001
        elif fault == "lost half":
            effect = EFFECT / 2
        elif fault == "shuffle":
            place = step * at_once % (SIZE - SIZE % at_once)
            if place == 0:
                order = random.permuted(order, axis=1)
            drawn = np.zeros((runs, SIZE), dtype=bool)
            np.put_along_axis(drawn, order[:, place : place + at_once], True, axis=1)
        yield noise + np.where(drawn, effect, 0.0), drawn
