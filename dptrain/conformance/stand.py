"""What the conformance checks run on: made-up units of the source's public shape, and a short plan with the user's
own clipping, noise and slack."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dptrain.config import TrainConfig
from dptrain.config_conform import ConformConfig
from dptrain.data.batches import PhysicalBatch
from dptrain.data.source import Rows
from dptrain.gradients.protocol import ClippingRule, Engine, RowLoss, trainable
from dptrain.keystream import Keystream
from dptrain.privacy.mechanism import DPSGD
from dptrain.privacy.plan import Plan
from dptrain.training.assemble import build_engine, build_trainer
from dptrain.training.loop import Trainer
from dptrain.training.made_up import made_up_batch
from dptrain.training.setup import Setup

ALPHA = 2e-6
"""Chance that the self-check of a checked run accuses a sound one; the run's own alpha where that is smaller."""
RATE = 0.25
"""Sampling rate of the checks: so that draws of a few units, and empty ones, are common."""
LARGEST_UNIT, MOST_ROWS = 3, 8
"""Rows of the largest unit, where the engine takes units of several rows: at least, and at most, whatever the plan."""
LARGE = 4
"""The unit of huge numbers."""
NORM_TOLERANCE = {"float32": 2e-5, "bfloat16": 2e-5, "float64": 1e-9}
"""What an engine's norm may be below the true one, relative (``reference`` says which that is)."""
OWN_TOLERANCE = {"float32": 1e-6, "bfloat16": 1e-6, "float64": 1e-9}
"""What it may be below that of the very values that the engine adds, relative."""
UNIT_TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-4, "float64": 1e-7}
"""What a contribution may be off, over C; for the default slack s, float32's is s / 10."""


@dataclass(frozen=True)
class Result:
    """One check's outcome, one line of the report."""

    check: str
    passed: bool | None
    """None: not applicable."""
    says: str
    """What was found, with its figure and the tolerance."""
    step: int | None = None
    """First step of a run at which it failed, where that can be said."""


@dataclass(frozen=True, kw_only=True)
class Stand:
    """Model, made-up units, plan and tolerances that every check shares. No private row is in it."""

    config: TrainConfig
    module: nn.Module
    row_loss: RowLoss
    rows: Rows
    """Units 0 and 1 hold the same rows; 2 is zero, 3 tiny, 4 large, where rows are real numbers."""
    plan: Plan
    asked: Plan
    """Of the run that was asked about; ``plan`` has a sampling rate that suits few units."""
    norm_tolerance: float
    own_tolerance: float
    unit_tolerance: float

    @property
    def mechanism(self) -> DPSGD:
        """Of the plan, which is private."""
        assert self.plan.mechanism is not None
        return self.plan.mechanism

    @property
    def clip(self) -> float:
        """C."""
        return self.mechanism.clipping_norm

    @property
    def slack(self) -> float:
        """s."""
        return self.mechanism.sensitivity_slack

    @property
    def count(self) -> int:
        """D."""
        return sum(p.numel() for p in trainable(self.module).values())

    @property
    def is_rough(self) -> bool:
        """Whether gradients are computed in so few bits that float64's are no yardstick for them."""
        return self.config.execution.dtype == "bfloat16"

    def is_own_yardstick(self, unit: int) -> bool:
        """Whether float64's gradient is no yardstick: in float32, for a unit of huge numbers, whose logits round."""
        wide = self.config.execution.dtype == "float64"
        return self.is_rough or (not wide and self.is_real and unit == LARGE)

    @property
    def compared_with(self) -> str:
        """What sums are held against, in words."""
        return "its own units, one by one" if self.is_rough else "float64 autograd"

    @property
    def is_real(self) -> bool:
        """Whether rows are real numbers, so that they can be huge, or no numbers at all."""
        return self.rows.inputs.is_floating_point()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.module.parameters()).device

    def engine(self, clip: float, grid: float | None = None, module: nn.Module | None = None) -> Engine:
        """The engine under test, for a clipping norm and a grid."""
        return build_engine(self.config, module or self.module, self.row_loss, ClippingRule(clip, grid))

    def all_rows(self, rows: Rows | None = None) -> PhysicalBatch:
        """Every unit in one batch, slot = unit; laid out here, not by the code under test."""
        rows = rows or self.rows
        weight = 1.0 / torch.bincount(rows.unit_id)[rows.unit_id].float()
        return PhysicalBatch(*(t.to(self.device) for t in (rows.inputs, rows.targets, rows.unit_id, weight)))

    def trainer(
        self, size: int, steps: int, selfcheck: bool = False, rows: Rows | None = None, copied: bool = True
    ) -> Trainer:
        """What ``dptrain train`` would run, on the made-up rows, with a model of its own.

        Args:
            size: rows of a physical batch.
            steps: planned.
            selfcheck: whether the run checks itself.
            rows: instead of the stand's.
            copied: whether it has a model of its own; without, it may only draw units and noise.
        """
        config = replace(
            self.config,
            execution=replace(self.config.execution, physical_batch_size=size),
            optimizer=replace(self.config.optimizer, lr=1e-3, schedule="constant", warmup_steps=0),
            selfcheck=replace(self.config.selfcheck, enabled=selfcheck, alpha=min(self.config.selfcheck.alpha, ALPHA)),
        )
        plan = replace(self.plan, steps=steps, mechanism=replace(self.mechanism, steps=steps))
        module = deepcopy(self.module) if copied else self.module
        return build_trainer(config, plan, module, rows or self.rows, self.row_loss, Keystream())

    def at_rate(self, rate: float) -> Stand:
        """The same at another sampling rate."""
        mechanism = replace(self.mechanism, sampling_rate=rate)
        return replace(self, plan=replace(self.plan, mechanism=mechanism, sampling_rate=rate))


def build_stand(setup: Setup, config: ConformConfig) -> Stand:
    """Makes rows up in the shape that the source declares; reads none.

    The data holds one unit less than the plan's public size, so that a rate or a divisor that is taken from the data
    shows.
    """
    assert setup.plan.mechanism is not None
    units = config.conform.units
    most = min(max(LARGEST_UNIT, setup.plan.max_rows_per_unit), MOST_ROWS)
    largest = 1 if config.clipping.engine == "opacus_ghost" else most
    sizes = torch.tensor([1 + unit % largest for unit in range(units - 1)])
    sizes[1] = sizes[0]
    unit_id = torch.repeat_interleave(torch.arange(units - 1), sizes)
    made = made_up_batch(setup, len(unit_id))
    inputs, targets = made.inputs.cpu().clone(), made.targets.cpu().clone()
    if setup.source.info.task == "regression":
        targets = torch.linspace(-1.0, 1.0, len(targets)).to(targets)
    _spoil(inputs, targets, unit_id)
    mixed = torch.randperm(len(unit_id), generator=torch.Generator().manual_seed(0))  # no unit's rows side by side
    inputs, targets, unit_id = inputs[mixed], targets[mixed], unit_id[mixed]
    mechanism = replace(setup.plan.mechanism, sampling_rate=RATE, divisor=RATE * units, steps=config.conform.steps)
    plan = replace(
        setup.plan,
        mechanism=mechanism,
        steps=config.conform.steps,
        sampling_rate=RATE,
        expected_batch_size=RATE * units,
        public_size=units,
        max_rows_per_unit=largest,
    )
    return Stand(
        config=setup.config,
        module=setup.module.train(),
        row_loss=setup.row_loss,
        rows=Rows(inputs, targets, unit_id),
        plan=plan,
        asked=setup.plan,
        norm_tolerance=NORM_TOLERANCE[config.execution.dtype],
        own_tolerance=OWN_TOLERANCE[config.execution.dtype],
        unit_tolerance=max(UNIT_TOLERANCE[config.execution.dtype], mechanism.sensitivity_slack / 10.0),
    )


def _spoil(inputs: Tensor, targets: Tensor, unit_id: Tensor) -> None:
    """Unit 1 becomes unit 0's double; 2, 3 and 4 become zero, tiny and large where rows are real numbers."""
    first, second = unit_id == 0, unit_id == 1
    inputs[second], targets[second] = inputs[first].clone(), targets[first].clone()
    if inputs.is_floating_point():
        for unit, factor in ((2, 0.0), (3, 1e-20), (LARGE, 1e3)):
            inputs[unit_id == unit] *= factor
