"""Looks at private rows that are paid for: their noise, how far one person moves them, and who is looked at."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from dptrain.config import TrainConfig
from dptrain.config_tuning import EvaluationConfig
from dptrain.conformance.regular import Law, chi_square, least, normal, product_p
from dptrain.conformance.stand import Result
from dptrain.data.source import Rows, SourceInfo
from dptrain.data.units import hold_out
from dptrain.keystream import Keystream
from dptrain.training.private_metrics import PrivateAccuracy, training_units

ALPHA = 1e-7
"""False-alarm rate of the laws together."""
PEOPLE, LOOKS, RUNS, SIGMA = 30, 40, 10, 3.0


class _Sign(nn.Module):
    """Says 1 where the first number of a row is above 0."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x[:, :1]


def private_looks() -> Result:
    """Noise of the planned deviation on a count that one person moves by at most 1, as often as planned, of people held
    out from training, where all rows of a person go the same way."""
    name, module = "private looks", _Sign()
    if (wrong := _apart()) is not None:
        return Result(name, False, wrong)
    unit = torch.repeat_interleave(torch.arange(PEOPLE), torch.arange(PEOPLE) % 4 + 1)
    inputs = torch.randn(len(unit), 2, generator=torch.Generator().manual_seed(8))
    targets = torch.ones(len(unit), dtype=torch.int64)
    hits = torch.zeros(PEOPLE, dtype=torch.float64)
    hits.index_add_(0, unit, (inputs[:, 0] > 0).double() / torch.bincount(unit)[unit])
    other = targets.clone()
    other[unit == 7] = 0  # the person of most rows answers the other way
    noise = list[float]()
    for run in range(RUNS):
        own = Rows(inputs, other if run % 2 else targets, unit)
        exact = float(hits.sum()) if run % 2 == 0 else float(hits.sum() - hits[7] + (1.0 - hits[7]))
        counted = PrivateAccuracy(own, "binary", SIGMA, LOOKS, 16, Keystream())
        noise += [counted.look(module) * PEOPLE - exact for _ in range(LOOKS)]
        try:
            counted.look(module)
        except RuntimeError:
            continue
        return Result(name, False, f"a look more than the {LOOKS} planned is not refused")
    quiet = [PrivateAccuracy(Rows(inputs, t, unit), "binary", 1e-3, 1, 16, Keystream()) for t in (targets, other)]
    values = [one.look(module) * PEOPLE for one in quiet]
    moved = abs(values[0] - values[1])
    if not moved <= 1.0 + 0.02:  # ten deviations of noise that is a thousandth of a person
        return Result(name, False, f"one person moves the count by {moved:.2f}")
    scores = np.array(noise) / SIGMA
    laws = [
        chi_square("deviation", float((scores**2).sum()), len(scores)),
        normal("mean", scores.sum() / len(scores) ** 0.5),
        Law("one after the other", product_p(float(scores[1:] @ scores[:-1]), len(scores))),
    ]
    if len(np.unique(np.round(scores, 9))) < len(scores) - 1:
        return Result(name, False, "noise of looks comes twice")
    return least(name, laws, ALPHA, f"{len(scores)} looks; one person moves the count by {moved:.2f}")


def _apart() -> str | None:
    """Who is held out trains not, in the number that the plan's rate is made of."""
    unit = torch.arange(120) // 3
    rows = Rows(torch.arange(120.0)[:, None], torch.zeros(120, dtype=torch.int64), unit)
    config = TrainConfig(evaluation=EvaluationConfig(metrics="dp"))
    train, held = hold_out(rows, config.evaluation, config.seed)
    info = SourceInfo(name="made up", task="binary", input_shape=(1,), num_classes=2, public_size=40, unit="user")
    if held is None:
        return "nobody is held out"
    people = [set((part.inputs[:, 0] // 3).long().tolist()) for part in (train, held)]
    if people[0] & people[1] or len(train) + len(held) != 120:
        return "people are trained on and looked at"
    if len(people[0]) != training_units(config, info):
        return f"{len(people[0])} people are trained on, and the plan's rate is made of {training_units(config, info)}"
    return None
