"""Looks at private rows that are paid for: a noisy count of right answers on units held out from training.

Each look releases ``sum over held-out units of (share of the unit's rows that the model gets right) + N(0, sigma^2)``,
divided by the number of held-out units, which is public under adjacency zero_out. Shares are whole numbers of 2^-20,
the noise is the exactly rounded Gaussian of ``noise/secure.py`` (whatever ``privacy.noise`` says), so no float of the
outcome betrays a unit.

Guarantee: one unit moves the sum by at most 1, whatever its rows, so a look is a Gaussian mechanism of noise multiplier
sigma, and ``looks`` of them are in the plan's event before the first is made; one more is refused. Rows are laid out in
the same places and batches whether or not a unit takes part (its rows replaced by nothing), so that no other unit's
answer changes with it. Units held out are not trained on; the plan still adds the looks to the training's price
(composition), though a unit pays for one of the two only.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from dptrain.config import TrainConfig
from dptrain.data.source import Rows, SourceInfo
from dptrain.data.units import held_out_units
from dptrain.errors import ConfigError
from dptrain.keystream import Keystream
from dptrain.noise.secure import SecureNoise
from dptrain.privacy import accounting
from dptrain.privacy.accounting import Event
from dptrain.privacy.plan import given_steps
from dptrain.training.evaluate import outputs_of
from dptrain.training.metrics import Predictions
from dptrain.training.recorder import evaluation_steps

NAME = "private_accuracy"
GRID = 1 << 20
"""Grid steps of one unit's share."""


class PrivateAccuracy:
    """Noisy accuracy on held-out private units, for a planned number of looks.

    Args:
        rows: held-out units, feature-mapped.
        task: multiclass or binary.
        noise_multiplier: standard deviation of the noise on the count, in units.
        looks: planned number; a further one raises RuntimeError.
        batch_size: rows at once.
        keystream: of these looks alone.
    """

    def __init__(
        self, rows: Rows, task: str, noise_multiplier: float, looks: int, batch_size: int, keystream: Keystream
    ) -> None:
        self._rows, self._task, self._batch_size = rows, task, batch_size
        self._noise = SecureNoise(keystream, noise_multiplier * GRID)
        self._planned, self._done = looks, 0
        self._units = rows.unit_id.numpy()
        self._rows_of = np.bincount(self._units, minlength=rows.num_units)

    def look(self, module: nn.Module) -> float:
        """The noisy share of right answers; may lie outside [0, 1]."""
        if self._done >= self._planned:
            raise RuntimeError(f"more looks at private rows than the {self._planned} planned")
        self._done += 1
        outputs = np.nan_to_num(outputs_of(module, self._rows.inputs, self._batch_size).numpy())
        right = Predictions(self._task, outputs, self._rows.targets.numpy()).labels == self._rows.targets.numpy()
        count = unit_shares(right, self._units, self._rows_of).sum()
        noisy = int(count) + int(self._noise.draw(self._done, 1)[0])
        return noisy / (GRID * len(self._rows_of))


def unit_shares(right: np.ndarray, units: np.ndarray, rows_of: np.ndarray) -> np.ndarray:
    """(num_units,) int64 in 0..GRID: share of each unit's rows that are right, rounded down to the grid."""
    hits = np.bincount(units, weights=right, minlength=len(rows_of)).astype(np.int64)
    return hits * GRID // np.maximum(rows_of, 1)


def check_private_evaluation(config: TrainConfig, info: SourceInfo) -> None:
    """Refuses evaluation.metrics=dp where it could not mean what it says. Reads no private row."""
    wrong = None
    if config.evaluation.metrics != "dp":
        return
    if not config.privacy.is_private:
        wrong = ("counts with noise, and privacy=off promises nothing", "set evaluation.metrics=public")
    elif info.task not in ("binary", "multiclass"):
        wrong = (f"counts right answers, a row one, and the task is {info.task}", "judge it on public rows")
    elif config.privacy.adjacency != "zero_out":
        wrong = (
            "holds units out by position, and under add_remove one row less would move the others across",
            "set privacy.adjacency=zero_out, or judge on public rows",
        )
    elif given_steps(config.privacy, training_units(config, info)) is None:
        wrong = ("plans its looks before the steps are solved for", "set privacy.steps or privacy.epochs")
    if wrong is not None:
        raise ConfigError("evaluation.metrics", "dp", *wrong)


def training_units(config: TrainConfig, info: SourceInfo) -> int:
    """Public number of units that are trained on: the declared size, less those held out."""
    if config.evaluation.metrics != "dp":
        return info.public_size
    held = int(held_out_units(info.public_size, config.evaluation.private_fraction, config.seed).sum())
    if not 1 <= held <= info.public_size - 2:
        raise ConfigError(
            "evaluation.private_fraction",
            config.evaluation.private_fraction,
            f"holds out {held} of {info.public_size} units",
            "choose another share",
        )
    return info.public_size - held


def planned_looks(config: TrainConfig, info: SourceInfo) -> int:
    """How often private rows are looked at; 0 without evaluation.metrics=dp."""
    steps = given_steps(config.privacy, training_units(config, info)) if config.evaluation.metrics == "dp" else None
    return 0 if steps is None else len(evaluation_steps(steps, config.evaluation.every))


def looks_event(config: TrainConfig, info: SourceInfo) -> tuple[Event, ...]:
    """The planned looks as plain data, for ``DPSGD.beside``."""
    looks = planned_looks(config, info)
    return (accounting.self_composed(looks, accounting.gaussian(config.evaluation.noise_multiplier)),) if looks else ()


class Best:
    """Keeps the weights of the best look so far. What it chooses by was public or noised: post-processing.

    Args:
        name: key of the record that decides.
        lower: whether the smallest value is the best.
        shown: inside this context the module is what a look judges (its average); as it is where there is none.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        lower: bool,
        shown: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._shown = shown
        self._module, self.name, self._sign = module, name, -1.0 if lower else 1.0
        self._value: float | None = None
        self._state: dict[str, torch.Tensor] = {}
        self._record: dict[str, object] = {}

    def offer(self, record: dict[str, object]) -> None:
        """Keeps the model as it is now where the record beats every one before."""
        value = record.get(self.name)
        if isinstance(value, float) and (self._value is None or self._sign * value > self._value):
            self._value = self._sign * value
            with self._shown():
                self._state = {k: v.detach().to("cpu", copy=True) for k, v in self._module.state_dict().items()}
            self._record = dict(record)

    def kept(self) -> dict[str, Any]:
        """What is kept so far, for a run that may have to go on later."""
        return {"value": self._value, "state": self._state, "record": self._record}

    def take_up(self, kept: dict[str, Any]) -> None:
        """Goes on from what ``kept`` gave in an earlier process."""
        self._value, self._state, self._record = kept["value"], kept["state"], kept["record"]

    def restore(self, last: dict[str, object]) -> dict[str, object]:
        """Puts the best weights back; returns their record (``last`` where there was no look)."""
        if self._state:
            self._module.load_state_dict(self._state)
        return self._record or last
