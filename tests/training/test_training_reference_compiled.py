"""References by compiled loops are those trained one by one: same draws, same schedule, same SGD."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dptrain.compose import compose
from dptrain.config import OptimizerConfig
from dptrain.data.source import Rows
from dptrain.training import reference
from dptrain.training.losses import cross_entropy, mse
from dptrain.training.reference import ALONE, COMPILED, STACKED, ReferenceTrainer
from dptrain.training.reference_compiled import _blocks, never_compiled, train_compiled
from dptrain.training.reference_draws import ReferenceDraws
from dptrain.training.reference_plain import Recipe, train_alone
from dptrain.training.setup import prepare

pytest.importorskip("numba", reason="needs the extra 'fast'")
STEPS = 40


def chain(seed: int, *hidden: int, activation: type[nn.Module] = nn.Tanh) -> nn.Module:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in zip((13, *hidden), hidden, strict=False):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers, nn.Linear((13, *hidden)[-1], 3))


def recipe_of(batch: int = 8, schedule: str = "cosine", warmup: int = 0, **options: Any) -> Recipe:
    torch.manual_seed(7)
    rows = Rows(torch.randn(60, 1, 13), torch.arange(60) % 3)
    optimizer = OptimizerConfig(name="sgd", lr=0.1, schedule=schedule, warmup_steps=warmup, options=options)
    return Recipe(rows, cross_entropy, optimizer, STEPS, float(batch), 64)


def agree(make: Callable[[int], nn.Module], recipe: Recipe, batch: int, count: int = 2) -> None:
    def draws(k: int):
        return ReferenceDraws(torch.arange(30 * k, 30 * k + 30), batch, STEPS, k)

    alone = [train_alone(make(k), recipe, draws(k)) for k in range(count)]
    found = train_compiled([make(k) for k in range(count)], recipe, [draws(k) for k in range(count)])
    for one, other, k in zip(alone, found, range(count), strict=True):
        assert list(one) == list(other)
        begun = make(k).state_dict()
        for key in one:
            assert (one[key] - begun[key]).abs().max() > 1e-4  # something was learned that could differ
            assert torch.allclose(one[key], other[key], atol=2e-6, rtol=2e-6), key


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.Sigmoid])
@pytest.mark.parametrize("hidden", [(), (8,), (9, 6), (17, 12, 10)])
def test_chains_of_any_depth(activation: type[nn.Module], hidden: tuple[int, ...]) -> None:
    agree(lambda k: chain(k, *hidden, activation=activation), recipe_of(momentum=0.9), 8)


@pytest.mark.parametrize(("kind", "truth"), [(1, torch.relu), (2, torch.tanh), (3, torch.sigmoid)])
def test_activations_are_within_4e7(kind: int, truth: Callable[[Tensor], Tensor]) -> None:
    from dptrain.training.reference_loops import _forward

    x = torch.cat([torch.linspace(-12, 12, 20001), torch.tensor([-1e30, 1e30, float("nan")])])
    out = np.empty((len(x), 4), np.float32)  # weights come in fours
    ones, none = np.ones((4, 1), np.float32), np.zeros(4, np.float32)
    _forward(x.numpy()[:, None].copy(), np.arange(len(x)), ones, none, kind, out)
    exact = truth(x.double()).float()
    assert torch.allclose(torch.from_numpy(out[:, 0]), exact, atol=4e-7, rtol=0, equal_nan=True)


@pytest.mark.parametrize("batch", [1, 2, 4, 7, 30])
def test_draws_of_any_size(batch: int) -> None:
    agree(lambda k: chain(k, 9), recipe_of(batch, momentum=0.5), batch)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9, "nesterov": True},
        {"weight_decay": 0.05},
        {"momentum": 0.8, "weight_decay": 0.05},
        {"momentum": 0.8, "weight_decay": 0.05, "nesterov": True, "foreach": True},
    ],
)
def test_options_of_sgd(options: dict[str, Any]) -> None:
    agree(lambda k: chain(k, 9), recipe_of(**options), 8)


@pytest.mark.parametrize(("schedule", "warmup"), [("constant", 0), ("linear", 7), ("cosine", 30)])
def test_schedules(schedule: str, warmup: int) -> None:
    agree(lambda k: chain(k, 9), recipe_of(schedule=schedule, warmup=warmup, momentum=0.9), 8)


def test_wide_layers_and_many_rows_go_through_in_blocks() -> None:
    """Blocks of a draw's rows, and several calls a training."""
    torch.manual_seed(1)
    rows = Rows(torch.randn(300, 2000), torch.arange(300) % 3)
    recipe = Recipe(rows, cross_entropy, OptimizerConfig(name="sgd", lr=0.05), 40, 150.0, 64)

    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2000, 6), nn.Tanh(), nn.Linear(6, 3))

    draws = ReferenceDraws(torch.arange(300), 150, 40, 0)
    alone = train_alone(make(), recipe, draws)
    found = train_compiled([make()], recipe, [draws])[0]
    assert all(torch.allclose(alone[key], found[key], atol=5e-6) for key in alone)


@pytest.mark.parametrize(
    ("members", "size"), [(1, 1), (9, 8), (30, 30), (1500, 64), (10001, 500), (10001, 501), (20000, 1001)]
)
def test_draws_are_those_of_the_other_ways(members: int, size: int) -> None:
    draws = ReferenceDraws(torch.arange(7, 7 + members), size, 25, 3)
    blocks = list(_blocks(draws, 10))
    assert [len(block) for block in blocks] == [10, 10, 5]
    found = np.concatenate(blocks)
    assert np.array_equal(found[:, :size], torch.stack(list(draws)).numpy())
    assert found.shape[1] % 4 == 0 and (found[:, size:] == found[:, :1]).all()


def test_what_is_no_number_stays_none() -> None:
    recipe = recipe_of(momentum=0.9)
    recipe.rows.inputs[3] = float("nan")
    draws = ReferenceDraws(torch.tensor([3, 4, 5]), 3, 1, 0)
    assert train_compiled([chain(0, 8, activation=nn.ReLU)], recipe, [draws])[0]["3.bias"].isnan().all()


def twice() -> nn.Module:
    layer = nn.Linear(13, 13)
    return nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer)


def half_frozen() -> nn.Module:
    module = chain(0, 8)
    next(module.parameters()).requires_grad_(False)
    return module


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(13, 8), nn.Dropout(), nn.Linear(8, 3)), "chain"),
        (nn.Sequential(nn.Linear(13, 3), nn.Flatten()), "chain"),
        (nn.Sequential(nn.Flatten(), nn.Linear(13, 3), nn.ReLU()), "chain"),
        (nn.Sequential(nn.Flatten(), nn.Linear(13, 3, bias=False)), "chain"),
        (nn.Linear(13, 3), "chain"),
        (nn.Sequential(nn.Flatten()), "chain"),
        (twice(), "chain"),
        (half_frozen(), "chain"),
        (nn.Sequential(nn.Flatten(), nn.Linear(13, 2)), "a class"),
        (chain(0, 8).double(), "float32"),
    ],
)
def test_other_models_are_left_to_the_other_ways(module: nn.Module, reason: str) -> None:
    assert reason in str(never_compiled(module, recipe_of()))


def test_other_recipes_are_left_to_the_other_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(**changed: Any) -> str | None:
        given = recipe_of(momentum=0.9)
        return never_compiled(chain(0, 8), Recipe(**{**vars(given), **changed}))

    rows = recipe_of().rows
    assert reason() is None
    assert "optimizer" in str(reason(optimizer=OptimizerConfig(name="adam", lr=0.1)))
    assert "optimizer" in str(reason(optimizer=OptimizerConfig(name="sgd", lr=0.1, options={"dampening": 0.1})))
    assert "loss" in str(reason(row_loss=mse))
    assert "loss" in str(reason(rows=Rows(rows.inputs, rows.targets.float())))
    assert "float32" in str(reason(rows=Rows(rows.inputs.double(), rows.targets)))
    monkeypatch.setattr("dptrain.training.reference_compiled.find_spec", lambda name: None)
    assert "numba" in str(reason())


def trainer_of(tmp_path: Path, *more: str) -> tuple[ReferenceTrainer, list[Tensor]]:
    given = ["data=digits", "model=mlp", "run.purpose=debug", "tracking=none", "privacy=off", "privacy.epochs=2"]
    setup = prepare(compose("train", [*given, f"run.dir={tmp_path / 'run'}", *more]), check_folder=False)
    torch.manual_seed(0)
    rows = setup.source.load().train
    mask = torch.rand(rows.num_units) < 0.5
    return ReferenceTrainer(setup, rows), [mask, ~mask] * 2


def test_a_trainer_gives_the_same_references_by_every_way(tmp_path: Path) -> None:
    trainer, masks = trainer_of(tmp_path)
    found = {way: trainer.train(masks[:2], [3, 4], way) for way in (ALONE, STACKED, COMPILED)}
    for way in (STACKED, COMPILED):
        for one, other in zip(found[ALONE], found[way], strict=True):
            assert list(one) == list(other)
            assert all(torch.allclose(one[key], other[key], atol=5e-6) for key in one), way


@pytest.mark.parametrize(
    ("took", "way", "stack", "alone"),
    [
        ({ALONE: 3.0, STACKED: 1.5, COMPILED: 1.0}, COMPILED, 4, 1.0),
        ({ALONE: 3.0, STACKED: 1.0, COMPILED: 1.5}, STACKED, 4, 3.0),
        ({ALONE: 3.0, STACKED: 2.95, COMPILED: 2.9}, ALONE, 1, 3.0),
        ({ALONE: 0.1, STACKED: 0.05, COMPILED: 0.01}, STACKED, 4, 0.1),  # compiling would not pay
    ],
)
def test_a_trial_takes_the_quickest_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, took: dict[str, float], way: str, stack: int, alone: float
) -> None:
    trainer, masks = trainer_of(tmp_path)

    def seconds(included: Any, seeds: Any, way: str) -> float:
        return took[way] * len(included)

    monkeypatch.setattr(trainer, "_seconds", seconds)
    speed = trainer.speed(masks, [1, 2, 3, 4])
    assert (speed.way, speed.stack, speed.alone) == (way, stack, alone)
    assert speed.way_alone == (COMPILED if way == COMPILED else ALONE)
    assert speed.why.startswith(way)
    assert ("too little to do" in speed.why) == (took[ALONE] < 1)


def test_a_trial_times_all_three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "COMPILING_SECONDS", 0.0)
    trainer, masks = trainer_of(tmp_path)
    speed = trainer.speed(masks, [1, 2, 3, 4])
    assert re.search(r"compiled \d+\.\d\d of its time; stacked \d+\.\d\d of its time", speed.why)
    assert 0 < speed.seconds <= speed.alone
