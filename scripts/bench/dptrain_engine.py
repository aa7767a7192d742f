"""dptrain's engines as contenders: the very ``Trainer`` that training uses, on a draw that is the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec

import torch
from torch import Tensor

from dptrain.config_privacy import PrivacyConfig
from dptrain.data.batches import PhysicalBatch
from dptrain.gradients.protocol import ClippingRule, Engine, EngineSettings, trainable
from dptrain.keystream import Keystream
from dptrain.noise.fast import FastNoise
from dptrain.noise.protocol import Noise
from dptrain.noise.secure import SecureNoise
from dptrain.privacy.grid import grid_step
from dptrain.privacy.plan import Plan, compile_plan
from dptrain.registry import engines
from dptrain.training.assemble import build_noise, worth_compiling
from dptrain.training.loop import Trainer

from .contenders import Settings
from .workloads import Workload, row_loss

PUBLIC_SIZE = 50_000


class NoNoise:
    """Zeros, made once: what is left is the cost of everything but noise. Never private."""

    name = "none"

    def __init__(self, count: int) -> None:
        self._zeros = torch.zeros(count, dtype=torch.float64)

    def draw(self, step: int, count: int) -> Tensor:
        """(count,) zeros."""
        return self._zeros

    def pieces(self, step: int, count: int) -> Iterator[Tensor]:
        return iter([self.draw(step, count)])

    def distance(self, total_draws: int) -> float:
        """Nothing here is private."""
        return float("inf")


def _load_compiled_noise() -> None:
    """Code is loaded before memory is measured, like all other imports."""
    if find_spec("numba") is not None:
        FastNoise(Keystream(), 1.0, compiled=True).draw(0, 8)
        SecureNoise(Keystream(), 2.0**20, compiled=True).draw(0, 8)


def _plan(settings: Settings, units: int) -> Plan:
    """A priced plan whose mechanism is the benchmark's: sigma 1, the whole batch as expected draw, many steps."""
    return compile_plan(
        PrivacyConfig(
            epsilon=None,
            noise_multiplier=1.0,
            clipping_norm=settings.clip,
            expected_batch_size=units,
            steps=10_000,
            epochs=None,
            noise="secure" if settings.noise == "secure" else "fast",
        ),
        PUBLIC_SIZE,
    )


class DptrainEngine:
    """One engine in the training loop: clipped sum, noise, divisor, optimizer, schedule, as in ``Trainer.run``."""

    def __init__(self, name: str, workload: Workload, settings: Settings, inputs: Tensor, targets: Tensor) -> None:
        _load_compiled_noise()
        self.model = workload.model()
        rows, per_unit = len(inputs), settings.unit_rows
        plan = _plan(settings, max(1, rows // per_unit))
        assert plan.mechanism is not None
        self._parameters = trainable(self.model)
        self._count = sum(p.numel() for p in self._parameters.values())
        grid = None
        if settings.noise == "secure":
            grid = grid_step(settings.clip, plan.mechanism.sensitivity_slack, self._count)
        self._grid = grid
        limit = None if settings.memory_limit < 0 else settings.memory_limit << 20
        compiled = worth_compiling(self._count * plan.steps)
        patterns = tuple(settings.checkpoint.split(",")) if settings.checkpoint else ()
        how = EngineSettings(pass_limit=limit, compiled=compiled, checkpoint=patterns)
        self.engine: Engine = engines.build(name, self.model, row_loss, ClippingRule(settings.clip, grid), how)
        unit = torch.arange(rows) // per_unit
        size = -(-rows // (settings.parts * per_unit)) * per_unit
        pieces = zip(inputs.split(size), targets.split(size), unit.split(size), strict=True)
        self._batches = [_batch(x, y, of - of[0]) for x, y, of in pieces]
        optimizer = workload.optimizer(self.model)
        self.trainer = Trainer(
            module=self.model,
            plan=plan,
            draw=lambda step: unit,
            batches=lambda draw: iter(self._batches),
            engine=self.engine,
            noise=self._noise(settings, plan),
            compiled=compiled,
            grid=grid,
            optimizer=optimizer,
            schedule=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0),
        )

    def _noise(self, settings: Settings, plan: Plan) -> Noise:
        if settings.noise == "none":
            return NoNoise(self._count)
        return build_noise(plan, Keystream(), self._count, self._grid, torch.device("cpu"))

    def run(self, on_step: Callable[[], None]) -> None:
        """See ``Contender``."""
        self.trainer.run(lambda steps, report, seconds: on_step())

    def clipped_sum(self) -> dict[str, Tensor]:
        """See ``Contender``; float64."""
        total = torch.zeros(self._count, dtype=torch.float64)
        for batch in self._batches:
            self.engine.add_clipped_sum(batch, total)
        total *= self._grid or 1.0
        sizes = [p.numel() for p in self._parameters.values()]
        parts = zip(self._parameters.items(), total.split(sizes), strict=True)
        return {name: part.view_as(p) for (name, p), part in parts}


def _batch(inputs: Tensor, targets: Tensor, unit: Tensor) -> PhysicalBatch:
    return PhysicalBatch(inputs, targets, unit, 1.0 / torch.bincount(unit)[unit].float())


def build(name: str, workload: Workload, settings: Settings, inputs: Tensor, targets: Tensor) -> DptrainEngine:
    """The engine filed under ``name`` in ``registry.engines``; ``dptrain:NAME`` where a peer has the same name."""
    return DptrainEngine(name.removeprefix("dptrain:"), workload, settings, inputs, targets)
