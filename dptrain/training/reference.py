"""References of a run: models trained by its own recipe on other halves of the rows, for an audit alone.

A recipe hands ``reference_trainer`` to ``audit``; nothing of a reference is ever released. References of a private
run are private as the run is (same engine, clipping, noise, steps and batch), each with a fresh key of its own; those
of a non-private run are stacked, or trained by compiled loops, where ten steps show that this is quicker.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from dptrain.config import TrainConfig
from dptrain.data.source import Rows
from dptrain.keystream import Keystream
from dptrain.models.build import ModelSpec
from dptrain.privacy.plan import Plan
from dptrain.training.assemble import build_trainer
from dptrain.training.mapped_rows import mapped_rows
from dptrain.training.reference_compiled import never_compiled, train_compiled
from dptrain.training.reference_draws import ReferenceDraws, draw_size
from dptrain.training.reference_plain import ELEMENTWISE, Recipe, train_alone, train_stacked
from dptrain.training.setup import Setup, prepare
from dptrain.training.start import begin_model

LARGEST_STACK = 16
TRIAL_STEPS = 10
WARM_STEPS = 2
"""Steps ahead of a trial, in which torch prepares what it keeps."""
MOST_STACKED_ROWS = 1 << 27
"""Numbers that a stacked batch of inputs may hold."""
WORTH_IT = 0.95
"""Another way must take at most this share of the time of one by one."""
ALONE, STACKED, COMPILED = "one by one", "stacked", "compiled"
COMPILING_SECONDS = 12.0
"""What compiling takes on a slow core, once a machine: not tried where a stack of references takes less one by one."""


@dataclass(frozen=True)
class Speed:
    """Of references, measured on ten steps."""

    stack: int
    """Models trained in one go; 1: one by one."""
    way: str
    """Of a stack: one by one, stacked or compiled."""
    seconds: float
    """That one reference takes by that way."""
    way_alone: str
    """Of a pair by itself: one by one or compiled."""
    alone: float
    """That one reference takes by that one."""
    why: str
    """The way, and why."""


class ReferenceTrainer:
    """Trains references of one run on halves of one pool.

    Args:
        setup: of the run, from its own config.
        rows: the pool, raw; unit u of it is what a mask says is in or out.
    """

    def __init__(self, setup: Setup, rows: Rows) -> None:
        self._setup = setup
        self._rows = mapped_rows(setup, rows)
        self._single_rows = rows.num_units == len(rows)
        self._order = torch.argsort(rows.unit_id, stable=True)
        facts = {name: value for name, value in asdict(setup.config).items() if name in RECIPE_PARTS}
        facts["draws"] = "of one size"
        facts["plan"] = [setup.plan.steps, setup.plan.expected_batch_size, asdict(setup.plan)["mechanism"]]
        self.digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def plan(self) -> Plan:
        """Of the run."""
        return self._setup.plan

    @property
    def spec(self) -> ModelSpec:
        """Of the run's model."""
        return self._setup.spec

    @property
    def is_private(self) -> bool:
        """Whether references are trained with clipping and noise."""
        return self._setup.plan.is_private

    def train(self, included: Sequence[Tensor], seeds: Sequence[int], way: str) -> list[dict[str, Tensor]]:
        """One reference a mask (U,) bool of the pool's units; states as ``state_dict`` names them, on the CPU.

        Args:
            included: masks.
            seeds: of initial weights and draws, one a mask.
            way: one that ``speed`` gave.

        Raises:
            KeyboardInterrupt: Ctrl-C; nothing of the references in hand is kept.
        """
        return self._some_steps(included, seeds, way, self._setup.plan.steps)

    def speed(self, included: Sequence[Tensor], seeds: Sequence[int]) -> Speed:
        """Takes ten steps of one reference, and as many by every other way that these references allow."""
        alone = self._seconds(included[:1], seeds[:1], ALONE)
        reason = self._never_plain()
        if reason is not None:
            return Speed(1, ALONE, alone, ALONE, alone, f"{ALONE}: {reason}")
        took, said = {ALONE: alone}, []
        reasons = {COMPILED: self._never_compiled(seeds[0], alone), STACKED: self._never_stacked(included)}
        for way, reason in reasons.items():
            found = self._trial(way, included, seeds) if reason is None else reason
            if isinstance(found, float):
                took[way] = found
            said.append(f"{way} {found / alone:.2f} of its time" if isinstance(found, float) else f"not {way}: {found}")
        best = min(took, key=lambda way: took[way] if way == ALONE else took[way] / WORTH_IT)
        single = COMPILED if best == COMPILED else ALONE
        stack = 1 if best == ALONE else len(included)
        quicker = "" if best == ALONE else f", {alone / took[best]:.2f} times as quick as one by one"
        return Speed(stack, best, took[best], single, took[single], f"{best}{quicker} ({'; '.join(said)})")

    def _trial(self, way: str, included: Sequence[Tensor], seeds: Sequence[int]) -> float | str:
        """Seconds of one reference, or why this way cannot be taken."""
        count = len(included) if way == STACKED else 1  # compiled, one takes the same however many there are
        try:
            return self._seconds(included[:count], seeds[:count], way) / count
        except (RuntimeError, NotImplementedError) as error:
            if way != STACKED:
                raise
            first = str(error).strip().partition("\n")[0][:120]
            return f"the model cannot be stacked ({first})"

    def _seconds(self, included: Sequence[Tensor], seeds: Sequence[int], way: str) -> float:
        """Of a whole training of all these, by ten steps of it."""
        plan = self._setup.plan
        warm, steps = min(WARM_STEPS, plan.steps), min(TRIAL_STEPS, plan.steps)
        self._some_steps(included, seeds, way, warm)
        start = time.perf_counter()
        self._some_steps(included, seeds, way, steps)
        return (time.perf_counter() - start) * plan.steps / steps

    def _never_plain(self) -> str | None:
        """Why references must go one by one."""
        if self.is_private:
            return "private references go through the run's own clipping engine"
        if not self._single_rows:
            return "units of several rows"
        return None if self._setup.part is None else "a part of the model is trained"

    def _never_stacked(self, included: Sequence[Tensor]) -> str | None:
        setup, plan = self._setup, self._setup.plan
        if setup.config.optimizer.name not in ELEMENTWISE:
            return f"optimizer '{setup.config.optimizer.name}' may look at more than one number at a time"
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in setup.module.modules()):
            return "batch normalisation keeps what it saw"
        size = self._rows.inputs[0].numel() * plan.expected_batch_size * len(included)
        if size > MOST_STACKED_ROWS or plan.expected_batch_size > setup.config.execution.physical_batch_size * 4:
            return "stacked batches would be too large"
        return None

    def _never_compiled(self, seed: int, alone: float) -> str | None:
        reason = never_compiled(self._module(seed), self._recipe(1.0))
        return reason or ("too little to do" if alone * LARGEST_STACK < COMPILING_SECONDS else None)

    def _some_steps(
        self, included: Sequence[Tensor], seeds: Sequence[int], way: str, steps: int
    ) -> list[dict[str, Tensor]]:
        modules = [self._module(seed) for seed in seeds]
        if self.is_private or not self._single_rows:
            pairs = zip(modules, included, strict=True)
            states = [self._through_engine(module, mask, steps) for module, mask in pairs]
        else:
            members = [self._order[mask] for mask in included]
            expected, fewest = self._setup.plan.expected_batch_size, min(len(part) for part in members)
            size = draw_size(expected, fewest)
            draws = [ReferenceDraws(part, size, steps, seed) for part, seed in zip(members, seeds, strict=True)]
            recipe = self._recipe(expected * size / min(expected, fewest))  # the mean, where the run takes the mean
            if way in (STACKED, COMPILED):
                states = (train_stacked if way == STACKED else train_compiled)(modules, recipe, draws)
            else:
                states = [train_alone(module, recipe, own) for module, own in zip(modules, draws, strict=True)]
        return [{name: value.cpu() for name, value in state.items()} for state in states]

    def _recipe(self, divisor: float) -> Recipe:
        setup = self._setup
        return Recipe(
            rows=self._rows,
            row_loss=setup.row_loss,
            optimizer=setup.config.optimizer,
            steps=setup.plan.steps,
            divisor=divisor,
            rows_at_once=setup.config.execution.physical_batch_size,
        )

    def _module(self, seed: int) -> nn.Module:
        setup = self._setup
        module = begin_model(replace(setup.config, seed=seed % (1 << 31)), setup.source.info, setup.spec).module
        module = module.double() if setup.config.execution.dtype == "float64" else module
        return module.to(next(setup.module.parameters()).device)

    def _rate(self, mask: Tensor) -> float:
        """The run's expected batch, of a pool of another size."""
        return min(1.0, self._setup.plan.expected_batch_size / int(mask.sum()))

    def _through_engine(self, module: nn.Module, mask: Tensor, steps: int) -> dict[str, Tensor]:
        """By the run's own step loop: draws and noise from a fresh key; sentinels are not needed here."""
        setup = self._setup
        config = replace(setup.config, selfcheck=replace(setup.config.selfcheck, enabled=False))
        plan = replace(setup.plan, sampling_rate=self._rate(mask))
        rows = self._rows.take(torch.nonzero(mask[self._rows.unit_id]).flatten())
        trainer = build_trainer(config, plan, module, rows, setup.row_loss, Keystream())
        if steps < plan.steps:  # a trial: the schedule stays that of the whole plan
            trainer = replace(trainer, plan=replace(plan, steps=steps))
        outcome = trainer.run(lambda done, report, seconds: None)
        if outcome.steps_done < steps:
            raise KeyboardInterrupt
        if trainer.average is not None:
            trainer.average.settle()
        return {name: value.detach().clone() for name, value in module.state_dict().items()}


RECIPE_PARTS = ("model", "optimizer", "task", "clipping", "execution", "finetune")
"""Parts of a config that a reference's weights depend on, beside the plan."""


def reference_trainer(config: TrainConfig, rows: Rows) -> ReferenceTrainer:
    """The trainer of a run's references.

    Args:
        config: the run's own.
        rows: members and non-members together, raw, units numbered from 0 without gaps.

    Raises:
        ConfigError: the run's settings do not hold here (data, model or device gone).
    """
    return ReferenceTrainer(prepare(config, check_folder=False), rows)
