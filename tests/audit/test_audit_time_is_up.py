"""The reference tier where time alone ends it: what it trains, what it says of one pair, and that none is no answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dptrain.audit import tier
from dptrain.audit.reference_lines import reference_lines
from dptrain.checkpoint.bundle import Bundle
from dptrain.data.source import Rows
from dptrain.errors import ConfigError
from dptrain.models.build import ModelSpec
from dptrain.run_folder import RunFolder

SECONDS = 10.0
"""That a reference takes, by the clock of these tests."""
Audit = Callable[..., dict[str, Any]]


@dataclass
class Clock:
    """Time that passes only while something trains."""

    now: float = 0.0

    def monotonic(self) -> float:
        return self.now

    def process_time(self) -> float:
        return time.process_time()


@dataclass
class Slow:
    """A trainer that takes its time; states differ by reference, so that attacks have something to compare."""

    clock: Clock
    stack: int = 1
    digest: str = "d"
    trained: list[int] = field(default_factory=list)

    def train(self, included: Sequence[Tensor], seeds: Sequence[int], way: str) -> list[dict[str, Tensor]]:
        self.clock.now += SECONDS * len(included)
        self.trained.append(len(included))
        made = [torch.Generator().manual_seed(seed) for seed in seeds]
        return [{"weight": torch.randn(2, 3, generator=g), "bias": torch.zeros(2)} for g in made]

    def speed(self, included: Sequence[Tensor], seeds: Sequence[int]) -> object:
        return SimpleNamespace(stack=self.stack, way="w", seconds=SECONDS, way_alone="a", alone=SECONDS, why="slow")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(tier, "time", clock)
    return clock


@pytest.fixture
def audit(tmp_path: Path) -> Audit:
    spec = ModelSpec(name="linear", raw_shape=(3,), input_shape=(3,), num_outputs=2, task="multiclass")
    torch.manual_seed(0)
    bundle = Bundle(tmp_path, torch.nn.Linear(3, 2), spec, {})
    members, others = (Rows(torch.randn(60, 3), torch.arange(60) % 2) for _ in range(2))
    pool = tier.make_pool(members, others, 100, 0)

    def run(trainer: Slow, budget: str) -> dict[str, Any]:
        settings: Any = SimpleNamespace(budget=budget, narrow=1e-9, fpr=[0.1], confidence=0.95)
        given: Any = trainer
        return tier.reference_tier(RunFolder(tmp_path, "run"), bundle, pool, given, settings, 0, 64)

    return run


def files(folder: Path) -> list[Path]:
    return list((folder / "internal" / "references").glob("*.safetensors"))


def test_no_time_for_a_pair_is_refused_not_answered(clock: Clock, audit: Audit, tmp_path: Path) -> None:
    """Nothing is trained and nothing is said of attacks that were not made; the remedy suffices."""
    trainer = Slow(clock)
    with pytest.raises(ConfigError, match=r"takes about 20 s; set audit\.budget=25s"):
        audit(trainer, "19s")
    assert trainer.trained == [] and files(tmp_path) == []
    assert audit(trainer, "25s")["references"]["count"] == 2


@pytest.mark.parametrize("stack", [1, 16])
@pytest.mark.parametrize(("budget", "count"), [("21s", 2), ("39s", 2), ("59s", 4), ("119s", 10), ("20m", 64)])
def test_training_stops_where_the_next_pair_would_not_fit(
    clock: Clock, audit: Audit, tmp_path: Path, stack: int, budget: str, count: int
) -> None:
    """The interval is never narrow enough here: time, and at last the largest number, is the only end."""
    found = audit(Slow(clock, stack), budget)["references"]
    assert found["count"] == found["new"] == len(files(tmp_path)) == count
    assert clock.now <= {"s": 1, "m": 60}[budget[-1]] * float(budget[:-1])
    assert ("stopped early" in found["way"]) == (count == tier.ENOUGH)


def test_one_pair_has_no_interval_between_models_and_says_so(clock: Clock, audit: Audit) -> None:
    """Attacks on the audited model are shown with their own intervals; of how models differ one pair says nothing."""
    found = audit(Slow(clock), "21s")
    assert {attack["name"] for attack in found["attacks"]} == set(tier.ATTACKS)
    assert all(0.0 <= attack["auc"]["low"] <= attack["auc"]["high"] <= 1.0 for attack in found["attacks"])
    assert found["references"]["between_models"] == {}
    said = dict(reference_lines(found["references"]))
    assert "one pair" in said["between models"]


def test_a_single_reference_is_none(clock: Clock, audit: Audit, tmp_path: Path) -> None:
    """Half a pair would leave every unit on one side only; it is not counted, and the pair is trained anew."""
    trainer = Slow(clock)
    audit(trainer, "21s")
    files(tmp_path)[0].unlink()
    with pytest.raises(ConfigError, match="too short for one pair"):
        audit(trainer, "19s")
    found = audit(trainer, "21s")["references"]
    assert found["count"] == found["new"] == 2


def test_ready_references_are_attacked_with_though_no_time_is_left(clock: Clock, audit: Audit) -> None:
    trainer = Slow(clock)
    audit(trainer, "59s")
    found = audit(trainer, "1s")["references"]
    assert (found["count"], found["new"]) == (4, 0)
    assert sum(trainer.trained) == 4


def test_a_reference_of_another_model_is_refused_and_a_diverged_one_is_told(
    clock: Clock, audit: Audit, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    trainer = Slow(clock)
    assert audit(trainer, "21s")["references"]["diverged"] == 0
    file = files(tmp_path)[0]
    held = load_file(file)
    save_file(held | {"weight": torch.full((2, 3), float("nan"))}, file)
    found = audit(trainer, "1s")["references"]
    assert found["diverged"] == 1
    assert any("diverged" in text for _, text in reference_lines(found))
    save_file(held | {"weight": torch.zeros(2, 4)}, file)
    with pytest.raises(ConfigError, match="weights of another model"):
        audit(trainer, "1s")
