"""The step loop: one noise vector for one draw, whatever lies around it."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dptrain.config import ClippingConfig, ExecutionConfig, PrivacyConfig, TrainConfig
from dptrain.data.source import Rows
from dptrain.keystream import Keystream
from dptrain.privacy.grid import grid_step
from dptrain.privacy.plan import compile_plan
from dptrain.training.assemble import build_trainer
from dptrain.training.loop import StepReport, Trainer
from dptrain.training.losses import cross_entropy

KEY = bytes(range(32))


def make(
    units: int = 60,
    batch: float = 6,
    steps: int = 5,
    engine: str = "vmap",
    physical: int = 8,
    noise: str = "secure",
    seed: int = 0,
    **privacy: object,
) -> Trainer:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    rows = Rows(torch.randn(units, 5), torch.arange(units) % 3)
    settings = {"epsilon": None, "noise_multiplier": 1.0, "epochs": None, "steps": steps, **privacy}
    config = TrainConfig(
        privacy=PrivacyConfig(expected_batch_size=batch, noise=noise, allow_large_delta=True, **settings),  # type: ignore[arg-type]
        clipping=ClippingConfig(engine=engine),
        execution=ExecutionConfig(physical_batch_size=physical),
    )
    plan = compile_plan(config.privacy, units)
    return build_trainer(config, plan, module, rows, cross_entropy, Keystream(test_key=KEY))


def releases(trainer: Trainer) -> tuple[list[Tensor], list[StepReport]]:
    """The noisy gradient handed to the optimizer in each step; the learning rate is 0 so that weights stay."""
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.0
    trainer.schedule.base_lrs = [0.0] * len(trainer.schedule.base_lrs)
    seen: list[Tensor] = []
    reports: list[StepReport] = []

    def note(_done: int, report: StepReport, _seconds: float) -> None:
        seen.append(torch.cat([p.grad.flatten().clone() for p in trainer.parameters if p.grad is not None]))
        reports.append(report)

    trainer.run(note)
    return seen, reports


@pytest.mark.parametrize("engine", ["vmap", "opacus_hooks", "opacus_ghost", "loop"])
@pytest.mark.parametrize("physical", [1, 7, 64])
def test_performance_settings_change_nothing(engine: str, physical: int) -> None:
    """Invariant 1: same plan, same draws and noise, same clipped sum within s/10 of a unit, same epsilon."""
    reference, there = make(engine="loop", physical=32), make(engine=engine, physical=physical)
    assert there.plan == reference.plan
    expected, _ = releases(reference)
    got, _ = releases(there)
    assert reference.plan.mechanism is not None
    tolerance = reference.plan.mechanism.clipping_norm * 1e-4 / reference.plan.expected_batch_size
    for one, other in zip(expected, got, strict=True):
        assert (one - other).norm() <= tolerance * 6


def test_every_draw_gets_its_own_noise() -> None:
    """With no data to speak of (all gradients clipped to 1e-6) the releases are the noise: pairwise different."""
    trainer = make(steps=6, clipping_norm=1.0)
    object.__setattr__(trainer, "batches", lambda draw: iter(()))
    seen, _ = releases(trainer)
    for i, one in enumerate(seen):
        for other in seen[i + 1 :]:
            assert (one != other).float().mean() > 0.9  # on a grid, single coordinates may agree by chance


def test_noise_has_the_planned_deviation_and_the_public_divisor() -> None:
    """Empty draws release noise alone: its variance is (sigma C (1+s) / B)^2. False alarm rate 1e-6."""
    from scipy.stats import chi2

    trainer = make(steps=400, batch=6, noise_multiplier=1.7, clipping_norm=0.3)
    object.__setattr__(trainer, "batches", lambda draw: iter(()))
    seen, reports = releases(trainer)
    values = torch.cat(seen).double()
    assert all(report.units == 0 for report in reports)
    expected = 1.7 * 0.3 * 1.001 / 6
    statistic = float((values / expected).square().sum())
    low, high = chi2.ppf([5e-7, 1 - 5e-7], len(values))
    assert low < statistic < high


def test_empty_draws_are_steps() -> None:
    trainer = make(units=50, batch=1, steps=30)
    seen, reports = releases(trainer)
    empty = [i for i, report in enumerate(reports) if report.units == 0]
    assert len(seen) == 30
    assert empty, "at q = 1/50 some of 30 draws are empty (all full: probability 1e-13)"
    assert all(float(seen[i].abs().max()) > 0 for i in empty)


def test_a_step_starts_from_zero_whatever_the_last_left() -> None:
    """A draw is never merged into another: an engine that is handed a dirty total would see it."""
    trainer = make(steps=4)
    engine, totals = trainer.engine, []

    class Watch:
        name, float_class = engine.name, engine.float_class

        def add_clipped_sum(self, batch, total):
            totals.append((int(total.count_nonzero()), batch))
            return engine.add_clipped_sum(batch, total)

    object.__setattr__(trainer, "engine", Watch())
    object.__setattr__(trainer, "batches", lambda draw: make_batches(trainer, draw))
    first_of_step: list[int] = []

    def make_batches(_trainer, draw):
        from dptrain.data.batches import UnitIndex, physical_batches

        rows = Rows(torch.randn(60, 5), torch.arange(60) % 3)
        first_of_step.append(len(totals))
        return physical_batches(draw, rows, UnitIndex(rows.unit_id), 4)

    trainer.run(lambda *_: None)
    starts = [totals[i][0] for i in first_of_step if i < len(totals)]
    assert starts
    assert all(nonzero == 0 for nonzero in starts)


def test_no_step_beyond_the_plan_and_none_lost() -> None:
    trainer = make(steps=7)
    outcome = trainer.run(lambda *_: None)
    assert (outcome.steps_done, outcome.status) == (7, "finished")
    with pytest.raises(RuntimeError, match="never used twice"):
        trainer.run(lambda *_: None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_finish_and_counts_it(number: signal.Signals) -> None:
    trainer = make(steps=50)

    def interrupt(done: int, _report: StepReport, _seconds: float) -> None:
        if done == 3:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    outcome = trainer.run(interrupt)
    assert outcome.status == "stopped"
    assert outcome.steps_done in (3, 4)
    assert signal.getsignal(number) is before
    claimed = trainer.plan.epsilon_after(outcome.steps_done)
    assert claimed is not None
    assert trainer.plan.epsilon is not None
    assert claimed <= trainer.plan.epsilon


def test_privacy_off_adds_no_noise_and_clips_nothing() -> None:
    first, second = (make(mechanism="none", noise_multiplier=None, clipping_norm=1e-9) for _ in range(2))
    assert first.noise is None
    got, _ = releases(first)
    again, _ = releases(second)
    for one, other in zip(got, again, strict=True):
        assert torch.equal(one, other)
        assert one.norm() > 1e-3 or one.norm() == 0


def test_a_private_plan_without_noise_cannot_be_assembled() -> None:
    trainer = make()
    with pytest.raises(ValueError, match="needs noise"):
        replace(trainer, noise=None)


def test_one_units_influence_on_a_release_is_bounded() -> None:
    """Invariant 6 through the whole loop: the same draws and noise with one unit's rows replaced by anything."""
    base, changed = make(steps=8, batch=30, clipping_norm=0.5), make(steps=8, batch=30, clipping_norm=0.5)
    wild = torch.tensor([1e30, -1e30, float("inf"), 0.0, float("nan")])

    def poisoned(draw: Tensor, inner=changed.batches):
        for batch in inner(draw):
            inputs = batch.inputs.clone()
            inputs[0] = wild
            yield replace(batch, inputs=inputs)

    object.__setattr__(changed, "batches", poisoned)
    one, _ = releases(base)
    other, _ = releases(changed)
    assert base.plan.mechanism is not None
    # A first row in each of up to four physical batches of a draw is replaced: at most that many units moved, each
    # from one contribution of norm C(1+s) to another.
    for a, b in zip(one, other, strict=True):
        assert torch.isfinite(b).all()
        moved = float((a - b).double().norm()) * base.plan.expected_batch_size
        assert moved <= 2 * base.plan.mechanism.sensitivity * 8 * (1 + 1e-6)


def test_the_grid_is_the_plans_own() -> None:
    trainer = make(clipping_norm=0.25)
    count = sum(p.numel() for p in trainer.parameters)
    assert trainer.grid == grid_step(0.25, 1e-3, count)
    assert make(noise="fast").grid is None
