"""The calibrated attack: a row's margin against what a model that never saw it gives rows of the same class.

Source: Bertran, Tang, Roth, Kearns, Morgenstern and Wu 2023, "Scalable membership inference attacks via quantile
regression" (2307.03694), in its Gaussian form: one model of the score's law, fitted on held-out rows under the audited
model itself, no reference models. The covariate here is the class alone: ridge regression on the rows' features beside
it gained no more (docs/results/audit.md). It takes out that whole classes are easy or hard, which neither loss nor
margin does.

One half of the held-out units fits the law and is not judged, so that those that are judged, and the members, are
independent of it: the intervals and the bounds on the claim hold as they do for any fixed score.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dptrain.audit.scores import logit_difference, per_unit

Floats = NDArray[np.float64]

NAME = "calibrated"
TASKS = ("binary", "multiclass")
FEWEST_UNITS = 40
"""Held-out units without which it is not tried: half of them fit."""
FEWEST_ROWS = 20
"""Fitting rows of a class without which the class has the law of all rows together."""
SMALLEST = 1e-6
"""Smallest deviation."""


def applies(task: str, non_members: int) -> bool:
    """Whether it is tried, by the task and the number of held-out units alone."""
    return task in TASKS and non_members >= FEWEST_UNITS


def calibrated(
    member_outputs: NDArray,
    member_targets: NDArray,
    member_units: NDArray,
    nonmember_outputs: NDArray,
    nonmember_targets: NDArray,
    nonmember_units: NDArray,
    task: str,
) -> tuple[Floats, Floats]:
    """Scores of the members and of the half of the held-out units that is judged.

    Arguments as for ``attack.run_attacks``.

    Returns:
        (n,) and (m,), units in ascending order of id.
    """
    units = np.unique(nonmember_units)
    shuffled = np.random.default_rng(len(units)).permutation(units)
    fits = np.isin(nonmember_units, shuffled[: len(units) // 2])
    held = logit_difference(nonmember_outputs, nonmember_targets, task)
    centre, spread = class_laws(held[fits], nonmember_targets[fits].astype(np.int64), _classes(nonmember_outputs, task))

    def standard(scores: Floats, targets: NDArray) -> Floats:
        of = targets.astype(np.int64)
        return (scores - centre[of]) / spread[of]

    members = standard(logit_difference(member_outputs, member_targets, task), member_targets)
    judged = standard(held[~fits], nonmember_targets[~fits])
    return per_unit(members, member_units), per_unit(judged, nonmember_units[~fits])


def class_laws(scores: Floats, classes: NDArray[np.int64], count: int) -> tuple[Floats, Floats]:
    """Mean and deviation of the scores of each of ``count`` classes, (count,) each; scores that are not finite are
    left out, and a class of few rows has the law of all."""
    known = np.isfinite(scores)
    scores, classes = scores[known], classes[known]
    parts = [scores[classes == k] for k in range(count)]
    parts = [part if len(part) >= FEWEST_ROWS else scores for part in parts]
    centre = np.array([part.mean() if len(part) else 0.0 for part in parts])
    spread = np.array([part.std() if len(part) else 1.0 for part in parts])
    return centre, np.maximum(spread, SMALLEST)


def _classes(outputs: NDArray, task: str) -> int:
    return 2 if task == "binary" else outputs.shape[1]
