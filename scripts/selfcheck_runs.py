"""Tiny runs of the training loop itself, and faults built into the parts that they are made of.

For scripts/check_selfcheck.py and tests/training/test_training_selfcheck.py; no command by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from dptrain.config import ClippingConfig, ExecutionConfig, PrivacyConfig, TrainConfig
from dptrain.config_selfcheck import SelfCheckConfig
from dptrain.data.source import Rows
from dptrain.gradients.draw_sum import DrawSum
from dptrain.gradients.protocol import ClippingRule, UnitStats
from dptrain.keystream import Keystream
from dptrain.privacy.plan import Plan, compile_plan
from dptrain.training import assemble
from dptrain.training.assemble import build_trainer
from dptrain.training.loop import Trainer
from dptrain.training.losses import cross_entropy


def private(batch: float, steps: int, noise: str = "secure", clipping_norm: float = 1.0) -> PrivacyConfig:
    """Settings at sigma = 1."""
    return PrivacyConfig(
        expected_batch_size=batch,
        noise=noise,
        allow_large_delta=True,
        epsilon=None,
        noise_multiplier=1.0,
        epochs=None,
        steps=steps,
        clipping_norm=clipping_norm,
    )


@cache
def plan_of(units: int, batch: float, steps: int, noise: str = "secure", clipping_norm: float = 1.0) -> Plan:
    """The plan of ``private``, compiled once: pricing is no part of what is measured."""
    return compile_plan(private(batch, steps, noise, clipping_norm), units)


def tiny(
    seed: int = 0,
    enabled: bool = True,
    engine: str = "auto",
    steps: int = 64,
    units: int = 200,
    batch: float = 10,
    noise: str = "secure",
    physical: int = 32,
    recompute: int = 0,
    dtype: str = "float32",
    key: bytes | None = None,
    rows_per_unit: int = 1,
    scale: float = 20.0,
) -> Trainer:
    """A network of 66 parameters on 200 made-up rows at sigma = 1; q = 0.05 unless told otherwise.

    Args:
        seed: of weights and rows.
        enabled: whether the run checks itself.
        units: rows.
        recompute: private units recomputed on a chosen step.
        key: of the key stream, for tests; None: the operating system's.
        scale: deviation of the rows' numbers.
        (the others as in the settings of a run)
    """
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    rows = Rows(scale * torch.randn(units, 5), torch.arange(units) % 3, torch.arange(units) // rows_per_unit)
    if dtype == "float64":
        module, rows = module.double(), Rows(rows.inputs.double(), rows.targets, rows.unit_id)
    config = TrainConfig(
        privacy=private(batch, steps, noise),
        clipping=ClippingConfig(engine=engine),
        execution=ExecutionConfig(physical_batch_size=physical, dtype=dtype),
        selfcheck=SelfCheckConfig(enabled=enabled, recompute_units=recompute),
    )
    plan = plan_of(units // rows_per_unit, batch, steps, noise)
    return build_trainer(config, plan, module, rows, cross_entropy, Keystream(test_key=key))


def low_noise(trainer: Trainer, factor: float) -> Trainer:
    """The noise is a factor of what it should be."""
    noise: Any = trainer.noise
    within = noise.pieces
    noise.pieces = lambda step, count: (piece * factor for piece in within(step, count))
    return trainer


def reused_seed(trainer: Trainer) -> Trainer:
    """Every step's noise is made from the seed of the first."""
    noise: Any = trainer.noise
    first = noise.draw(0, trainer._count)
    noise.pieces = lambda step, count: iter([first.clone()])
    return trainer


@contextmanager
def wrong_norm(factor: float) -> Iterator[None]:
    """Engines that are built within clip to another norm than the plan's, while the noise is for the plan's."""
    rule = assemble.ClippingRule
    assemble.ClippingRule = lambda norm, grid: ClippingRule(norm * factor, grid)  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        assemble.ClippingRule = rule  # type: ignore[misc]


class Halved(DrawSum):
    """A sum of which one of two processes' share is lost, before the noise."""

    def release(self, noise: Any, scale: float) -> None:
        self.flat().div_(2.0)
        super().release(noise, scale)


class Merged:
    """An engine that clips each physical batch as one.

    Args:
        within: the engine.
        limit: C, in the engine's unit.
    """

    def __init__(self, within: Any, limit: float) -> None:
        self.name, self.float_class = within.name, within.float_class
        self._within, self._limit = within, limit

    def add_clipped_sum(self, batch: Any, total: Tensor) -> UnitStats:
        part = torch.zeros_like(total)
        stats = self._within.add_clipped_sum(batch, part)
        total += part * min(1.0, self._limit / float(part.norm().clamp(min=1e-9)))
        return stats


def clipped_per_batch(trainer: Trainer) -> Trainer:
    """The private units' engine clips each physical batch as one."""
    assert trainer.plan.mechanism is not None
    limit = trainer.plan.mechanism.clipping_norm / (trainer.grid or 1.0)
    return replace(trainer, engine=Merged(trainer.engine, limit))
