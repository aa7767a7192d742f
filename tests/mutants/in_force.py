"""Whether a seeded mistake is in force: what a run does or promises is not what it was without it.

Both runs have one key, so that everything that they do can be compared, number by number. No check looks at them.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dptrain.training.private_metrics as metrics_module
from dptrain.compose import compose
from dptrain.gradients.draw_sum import DrawSum
from dptrain.keystream import Keystream, Purpose
from dptrain.noise.ahead import NoiseAhead
from dptrain.training import assemble
from dptrain.training.loop import StepReport, Trainer
from dptrain.training.private_metrics import Best
from dptrain.training.recorder import Recorder
from dptrain.training.setup import prepare
from dptrain.training.stages import read_rows

ROOT = Path(__file__).resolve().parents[2]
KEYS = 2_000
"""Key streams whose first words are counted: of 2^16 keys, thirty pairs are one."""
SAME = 2e-3
"""Share of its norm that a vector may move by between two runs of one key: ways of computing a sum are picked by time,
and what that changes in the last digits grows from step to step."""


def script(name: str) -> Any:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(f"tested_{name}", ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


runner: Any = script("mutants")


class Watched:
    """What a run of one key did: vectors by name, in the order of steps."""

    def __init__(self, settings: tuple[str, ...]) -> None:
        self.vectors: dict[str, list[Tensor]] = {}
        spelled = runner.spelled([*runner.BASE, *settings, "selfcheck.enabled=false"])
        setup = prepare(compose("train", spelled), check_folder=False)
        loaded = read_rows(setup)
        assert setup.plan.mechanism is not None
        self._see("epsilon", torch.tensor([setup.plan.epsilon]))
        counts = [1, max(1, setup.plan.steps // 2), setup.plan.steps]
        self._see("odometer", torch.tensor([0.0, *setup.plan.odometer(counts)]))
        self._see("other deltas", torch.tensor([0.0, *(point["epsilon"] for point in setup.plan.epsilon_at())]))
        words = {int(Keystream().open(Purpose.NOISE, 0).uint64(1)[0]) for _ in range(KEYS)}
        self._see("keys", torch.tensor(len(words)))
        self._see("records", torch.tensor(_recorded()))
        keystream = Keystream(test_key=b"3" * 32)
        rows, intend = loaded.splits.train, lambda step: self._see("intents", torch.tensor(step))
        self.trainer = assemble.build_trainer(
            setup.config, setup.plan, setup.module, rows, setup.row_loss, keystream, intend
        )
        draw = self.trainer.draw

        def drawn(step: int) -> Tensor:
            found = draw(step)
            self._see("draws", torch.zeros(rows.num_units).index_fill(0, found, 1.0))
            return found

        class Bound:
            """A draw that is still its sampler's."""

            __self__ = getattr(draw, "__self__", None)
            __call__ = staticmethod(drawn)

        object.__setattr__(self.trainer, "draw", Bound())
        self._best = Best(setup.module, "public_loss", lower=True) if setup.config.release.choose == "best" else None
        self._public, self._row_loss = loaded.splits.public, setup.row_loss
        with _seen_sums(self):
            self.trainer.run(self._after)
        if self.trainer.average is not None:
            self._see("average", torch.cat([mean.flatten() for mean in self.trainer.average._mean]))
        self._fixed(setup.module)
        if loaded.splits.validation is not None:
            units = loaded.splits.validation.unit_id.numpy()
            rows_of = np.bincount(units)
            self._see("looks", torch.from_numpy(metrics_module.unit_shares(units >= 0, units, rows_of)))
            private = metrics_module.PrivateAccuracy(
                loaded.splits.validation, setup.source.info.task, 4.0, 2, 64, Keystream(test_key=b"4" * 32)
            )
            first, second = (private.look(setup.module) for _ in range(2))
            self._see("noise of looks", torch.tensor(first - second))
        if self._best is not None:
            self._best.restore({})
            self._see("best", torch.cat([p.flatten() for p in self.trainer.parameters]))
        self._fresh(sum(p.numel() for p in self.trainer.parameters))
        buffers = [b.flatten().double() for b in setup.module.buffers()]
        self._see("buffers", torch.cat([torch.zeros(1).double(), *buffers]))
        for values in self.vectors.values():
            assert all(bool(value.isfinite().all()) for value in values)

    def _fresh(self, size: int) -> None:
        """Noise for steps that no run takes: as much as a step's, and a round number, unless it knows its shapes."""
        noise = self.trainer.noise
        assert noise is not None
        for step, count in ((10**6, size), (10**6 + 1, 4096)):
            if isinstance(noise, NoiseAhead):
                noise.begin(step, count)
            with suppress(RuntimeError) if count != size else nullcontext():
                self._see("noise", noise.draw(step, count))

    def _fixed(self, module: nn.Module) -> None:
        """What no step is to move."""
        found = [p.detach().flatten() for p in module.parameters() if not p.requires_grad]
        self._see("fixed", torch.cat([torch.ones(1), *found]))

    def _see(self, name: str, value: Tensor) -> None:
        self.vectors.setdefault(name, []).append(value.detach().double().flatten().clone())

    def _after(self, done: int, report: StepReport, seconds: float) -> None:
        trainer = self.trainer
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trainer.parameters]
        self._see("released", torch.cat([g.flatten() for g in grads]))
        self._see("parameters", torch.cat([p.flatten() for p in trainer.parameters]))
        if self._best is not None:
            with torch.no_grad():
                loss = self._row_loss(trainer.module(self._public.inputs), self._public.targets).mean()
            self._best.offer({"public_loss": float(loss)})


def _recorded() -> int:
    """How many things stand in a public record."""
    records = list[dict[str, Any]]()
    recorder = Recorder(
        steps=[1], epsilons={}, epsilon_limit=None, evaluate=dict, listeners=[records.append], internal=_Nowhere()
    )
    recorder.record(1, StepReport(), 0.0)
    return len(records[0])


class _Nowhere:
    """A sink of internal records."""

    def append(self, record: dict[str, Any]) -> None:
        """Keeps none."""


@contextmanager
def _seen_sums(watched: Watched) -> Iterator[None]:
    """Lets a run show every draw's sum before its noise."""
    original = Trainer._clipped_sum

    def clipped_sum(trainer: Trainer, step: int, total: DrawSum) -> StepReport:
        report = original(trainer, step, total)
        watched._see("sums", total.flat())
        return report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_clipped_sum", clipped_sum)
        yield


def differences(one: Watched, other: Watched) -> Iterator[tuple[str, float]]:
    """Names of what differs, with the largest share of its norm by which it does."""
    for name, values in one.vectors.items():
        others = other.vectors.get(name, [])
        if len(values) != len(others) or any(len(a) != len(b) for a, b in zip(values, others, strict=True)):
            yield name, float("inf")
            continue
        share = max(float((a - b).norm() / a.norm().clamp(min=1e-12)) for a, b in zip(values, others, strict=True))
        if share > (SAME if name in ("sums", "released", "parameters", "average", "buffers", "best") else 1e-6):
            yield name, share


@cache
def clean(settings: tuple[str, ...]) -> Watched:
    return Watched(settings)


def in_force(apply: Any, settings: tuple[str, ...]) -> bool:
    """Whether a mistake, once made, makes a difference to a run under these settings, which it comes through."""
    before = clean(settings)
    with runner.mutated(apply):
        planted = Watched(settings)
    return bool(dict(differences(before, planted)))
