"""Every mistake of list four trains, and is in force: what a run does or promises is not what it was without it.

Both runs have one key, so that everything that they do can be compared, number by number. No check looks at them.
A few by default; all of them: ``-m slow``.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
from dptrain.training.setup import prepare
from dptrain.training.stages import read_rows

ROOT = Path(__file__).resolve().parents[2]
FEW = ("factor_in_float8", "cyclic_groups", "rest_carried_over", "sign_agreement")
SAME = 2e-3
"""Share of its norm that a vector may move by between two runs of one key: ways of computing a sum are picked by time,
and what that changes in the last digits grows from step to step."""


def _runner() -> Any:
    spec = importlib.util.spec_from_file_location("tested_mutants_four", ROOT / "scripts" / "mutants.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


runner: Any = _runner()
mutants: dict[str, Any] = runner.load(str(Path(__file__).with_name("list_four")))


class _Watched:
    """What a run of one key did: vectors by name, in the order of steps."""

    def __init__(self, settings: tuple[str, ...]) -> None:
        self.vectors: dict[str, list[Tensor]] = {}
        spelled = runner.spelled([*runner.BASE, *settings, "selfcheck.enabled=false"])
        setup = prepare(compose("train", spelled), check_folder=False)
        loaded = read_rows(setup)
        assert setup.plan.mechanism is not None
        self._see("epsilon", torch.tensor([setup.plan.epsilon]))
        self._see("keys", torch.tensor(len({int(Keystream().open(Purpose.NOISE, 0).uint64(1)[0]) for _ in range(2)})))
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
        with _seen_sums(self):
            self.trainer.run(self._after)
        if self.trainer.average is not None:
            self._see("average", torch.cat([mean.flatten() for mean in self.trainer.average._mean]))
        self._fixed(setup.module)
        if loaded.splits.validation is not None:
            units = loaded.splits.validation.unit_id.numpy()
            rows_of = np.bincount(units)
            self._see("looks", torch.from_numpy(metrics_module.unit_shares(units >= 0, units, rows_of)))
        noise = self.trainer.noise
        if isinstance(noise, NoiseAhead):
            noise.begin(10**6, 4096)
        assert noise is not None
        self._see("noise", noise.draw(10**6, 4096))
        buffers = [b.flatten().double() for b in setup.module.buffers()]
        self._see("buffers", torch.cat([torch.zeros(1).double(), *buffers]))
        for values in self.vectors.values():
            assert all(bool(value.isfinite().all()) for value in values)

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


@contextmanager
def _seen_sums(watched: _Watched) -> Iterator[None]:
    """Lets a run show every draw's sum before its noise."""
    original = Trainer._clipped_sum

    def clipped_sum(trainer: Trainer, step: int, total: DrawSum) -> StepReport:
        report = original(trainer, step, total)
        watched._see("sums", total.flat())
        return report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_clipped_sum", clipped_sum)
        yield


def _differences(one: _Watched, other: _Watched) -> Iterator[tuple[str, float]]:
    """Names of what differs, with the largest share of its norm by which it does."""
    for name, values in one.vectors.items():
        others = other.vectors.get(name, [])
        if len(values) != len(others) or any(len(a) != len(b) for a, b in zip(values, others, strict=True)):
            yield name, float("inf")
            continue
        share = max(float((a - b).norm() / a.norm().clamp(min=1e-12)) for a, b in zip(values, others, strict=True))
        if share > (SAME if name in ("sums", "released", "parameters", "average", "buffers") else 1e-6):
            yield name, share


@cache
def _clean(settings: tuple[str, ...]) -> _Watched:
    return _Watched(settings)


def test_the_list_says_what_it_is() -> None:
    assert len(mutants) == 60
    for name, (row, says, apply, settings) in mutants.items():
        assert name.isidentifier() and row and says and callable(apply) and isinstance(settings, tuple)
    assert len({says for _, says, _, _ in mutants.values()}) == len(mutants)


def _check(name: str) -> None:
    _, _, apply, settings = mutants[name]
    clean = _clean(settings)
    with runner.mutated(apply):
        planted = _Watched(settings)
    assert dict(_differences(clean, planted))


@pytest.mark.parametrize("name", FEW)
def test_a_mistake_trains_and_is_in_force(name: str) -> None:
    _check(name)


def test_two_runs_without_a_mistake_do_the_same() -> None:
    assert not dict(_differences(_clean(()), _Watched(())))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(mutants.keys() - set(FEW)))
def test_every_mistake_trains_and_is_in_force(name: str) -> None:
    _check(name)


@pytest.mark.slow
@pytest.mark.parametrize("settings", sorted({settings for *_, settings in mutants.values()}), ids=" ".join)
def test_no_settings_make_a_difference_by_themselves(settings: tuple[str, ...]) -> None:
    assert not dict(_differences(_clean(settings), _Watched(settings)))
