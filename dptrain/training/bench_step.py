"""A plain step and a private step of one model on made-up rows: the two sides of the benchmark's ratio."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch

from dptrain.config import ClippingConfig, OptimizerConfig
from dptrain.data.batches import PhysicalBatch
from dptrain.gradients.protocol import ClippingRule, Engine, trainable
from dptrain.keystream import Keystream
from dptrain.noise.protocol import Noise
from dptrain.training.assemble import DTYPES, build_engine, build_noise, worth_compiling
from dptrain.training.loop import Trainer
from dptrain.training.optimizers import build_optimizer, build_schedule
from dptrain.training.setup import Setup

UNENDING = 1_000_000_000
"""Steps of the plan that is stepped through; the benchmark ends it."""


class Clock:
    """CPU time of the process, all threads, on a CPU, where others may be busy too; time on the wall on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.what = "time on the wall" if self._cuda else "CPU time of all threads"

    def now(self) -> float:
        """Seconds, once the device has done what it was given."""
        if self._cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()


class PlainStep:
    """zero_grad, forward, mean loss, backward, optimizer: as without privacy. Has a copy of the model."""

    def __init__(self, setup: Setup) -> None:
        self._module = deepcopy(setup.module).train()
        self._row_loss = setup.row_loss
        self._autocast = DTYPES[setup.config.execution.dtype]
        self._optimizer = build_optimizer(_still(setup.config.optimizer), list(trainable(self._module).values()))

    def step(self, batch: PhysicalBatch) -> None:
        """One step."""
        self._optimizer.zero_grad()
        with torch.autocast(batch.inputs.device.type, dtype=self._autocast, enabled=self._autocast is not None):
            outputs = self._module(batch.inputs)
        self._row_loss(outputs, batch.targets).mean().backward()
        self._optimizer.step()


class _EnoughError(Exception):
    """Ends a run of steps."""


class PrivateStep:
    """What the training loop does with a draw of one physical batch, by one engine and ``fast`` noise.

    It is the loop itself: clipped sum, noise, divisor, optimizer, schedule. Has a copy of the model.
    """

    def __init__(self, setup: Setup, engine: str) -> None:
        assert setup.plan.mechanism is not None
        module = deepcopy(setup.module)
        parameters = list(trainable(module).values())
        count = sum(p.numel() for p in parameters)
        config = replace(setup.config, clipping=ClippingConfig(engine=engine))
        rule = ClippingRule(setup.plan.mechanism.clipping_norm, None)
        compiled = worth_compiling(count * setup.plan.steps)
        self.engine: Engine = build_engine(config, module, setup.row_loss, rule, compiled)
        optimizer = build_optimizer(_still(config.optimizer), parameters)
        self._batch: PhysicalBatch | None = None
        self._trainer = Trainer(
            module=module,
            plan=replace(setup.plan, steps=UNENDING),
            draw=lambda step: torch.empty(0, dtype=torch.int64),
            batches=lambda draw: iter([] if self._batch is None else [self._batch]),
            engine=self.engine,
            noise=self._noise(setup, count, parameters[0].device),
            grid=None,
            compiled=compiled,
            optimizer=optimizer,
            schedule=build_schedule(_still(config.optimizer), optimizer, UNENDING),
        )

        self._fresh_noise = lambda: self._noise(setup, count, parameters[0].device)

    @staticmethod
    def _noise(setup: Setup, count: int, device: torch.device) -> Noise:
        return build_noise(replace(setup.plan, noise="fast"), Keystream(), count, None, device)

    def run(self, batch: PhysicalBatch, after: Callable[[], bool]) -> None:
        """Takes steps on that batch; ``after`` each of them says whether to take another.

        Raises:
            KeyboardInterrupt: as asked for meanwhile, once the step in hand is done.
        """
        self._batch = batch

        def on_step(*_: Any) -> None:
            if not after():
                raise _EnoughError

        try:
            replace(self._trainer, noise=self._fresh_noise()).run(on_step)  # no stream of noise is drawn twice
        except _EnoughError:
            return
        raise KeyboardInterrupt

    def steps(self, batch: PhysicalBatch, count: int) -> None:
        """Takes that many steps."""
        left = iter(range(count - 1))
        self.run(batch, lambda: next(left, None) is not None)


def _still(config: OptimizerConfig) -> OptimizerConfig:
    """The same optimizer with steps so small that the model stays what it is; a schedule costs nothing."""
    return replace(config, lr=1e-9, schedule="constant", warmup_steps=0)
