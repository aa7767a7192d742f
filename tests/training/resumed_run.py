"""A small run on made-up people, and the ways in which it is killed, stopped and watched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from dptrain.cli import run
from dptrain.config_data import DataConfig
from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.privacy.ledger import open_ledger
from dptrain.privacy.plan import Plan
from dptrain.registry import sources
from dptrain.training import loop
from dptrain.training.budget import Budget
from dptrain.training.loop import Trainer

STEPS = 9
KEY = bytes(range(32))
SHIFT = {"by": 0}
"""Added to the made-up inputs: another value makes other rows."""


@sources.register("resumed_people")
def people(config: DataConfig, seed: int) -> Source:
    def load() -> Splits:
        x = torch.randn(120, 4, generator=torch.Generator().manual_seed(1)) + SHIFT["by"]
        y = (x[:, 0] > SHIFT["by"]).long()
        return Splits(train=Rows(x[:80], y[:80]), public=Rows(x[80:], y[80:]))

    return Source(SourceInfo(name="people", task="binary", input_shape=(4,), num_classes=2, public_size=80), load)


COMMON = [
    "data=own",
    "data.name=resumed_people",
    "model=linear",
    "privacy.epsilon=null",
    "privacy.noise_multiplier=3",
    "privacy.epochs=null",
    f"privacy.steps={STEPS}",
    "privacy.expected_batch_size=20",
    "optimizer=adam",
    "optimizer.schedule=cosine",
    "tracking=none",
    "run.dir=r",
    "ledger.lease_steps=2",
    "checkpoint.every=1e-9",
]
COUNTED = ["train", *COMMON, "run.purpose=final", "ledger.epsilon_limit=20"]
FREE = ["train", *COMMON, "data.all_public=true"]
KINDS = pytest.mark.parametrize("command", [COUNTED, FREE], ids=["ledger", "journal"])


class Killed(BaseException):
    """The process dies here: nothing after it runs, as far as a test can have that."""


_PRICED: dict[str, Any] = {}


def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own; and prices for show, the same for every run here, are computed once."""
    monkeypatch.chdir(tmp_path)
    for name in ("epsilon_at", "odometer"):
        honest = getattr(Plan, name)

        def once(*arguments: Any, honest: Any = honest) -> Any:
            key = f"{honest.__name__} {arguments!r}"
            if key not in _PRICED:
                _PRICED[key] = honest(*arguments)
            return list(_PRICED[key])

        monkeypatch.setattr(Plan, name, once)


def go(command: list[str]) -> int:
    return run(command)


def die_at(monkeypatch: pytest.MonkeyPatch, step: int, after_noise: bool = False) -> None:
    """The process dies in that step (from 1), before or after its noise; its ledger entry stays open."""
    honest = Trainer._release

    def release_step(self: Trainer, number: int, total: Any) -> None:
        if number + 1 == step and not after_noise:
            raise Killed
        honest(self, number, total)
        if number + 1 == step:
            raise Killed

    monkeypatch.setattr(loop.Trainer, "_release", release_step)
    monkeypatch.setattr(Budget, "settle", lambda *_: None)


def killed(monkeypatch: pytest.MonkeyPatch, command: list[str], step: int, after_noise: bool = False) -> None:
    with monkeypatch.context() as patch:
        die_at(patch, step, after_noise)
        with pytest.raises(Killed):
            go(command)


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """SIGTERM arrives while that step is computed."""
    honest = Trainer._clipped_sum

    def clipped_sum(self: Trainer, number: int, total: Any) -> Any:
        if number + 1 == step:
            os.kill(os.getpid(), 15)
        return honest(self, number, total)

    monkeypatch.setattr(loop.Trainer, "_clipped_sum", clipped_sum)


def stopped(monkeypatch: pytest.MonkeyPatch, command: list[str], step: int) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        assert go(command) == 0


def witness(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(keystream, step) of every noise vector that is drawn from here on."""
    seen: list[tuple[int, int]] = []
    honest = Trainer._release

    def release_step(self: Trainer, number: int, total: Any) -> None:
        seen.append((id(self.noise), number))
        honest(self, number, total)

    monkeypatch.setattr(loop.Trainer, "_release", release_step)
    return seen


def entries() -> list[Any]:
    ledger = open_ledger(None)
    found = list(ledger.state.entries.values())
    ledger.close()
    return found


def last_error(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]
