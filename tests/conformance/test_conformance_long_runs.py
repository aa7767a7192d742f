"""Long runs, post-processing and random bits: an honest loop passes, and each planted fault is named by its check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tiny_stand import stand_of
from torch import Tensor

from dptrain.config import OptimizerConfig
from dptrain.conformance import long_runs as module
from dptrain.conformance.guard import guarded
from dptrain.conformance.long_runs import long_runs
from dptrain.conformance.observe import addresses
from dptrain.conformance.post_processing import rate_at
from dptrain.conformance.small_run import clipped_sum, loss_of, made_up, network, unit_gradients
from dptrain.conformance.stand import Result, Stand
from dptrain.data.batches import PhysicalBatch
from dptrain.errors import ClaimRejected, ConfigError
from dptrain.gradients.recompute import recompute
from dptrain.keystream import Keystream, Purpose
from dptrain.noise.secure import SecureNoise
from dptrain.training.average import Average
from dptrain.training.loop import StepReport, Trainer


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONG", 34)
    monkeypatch.setattr(module, "SHORT", 4)


def failed(stand: Stand) -> set[str]:
    return {one.check for one in long_runs(stand) if one.passed is False}


def test_the_sum_of_the_small_network_is_what_autograd_finds(stand: Stand) -> None:
    rows, net, clip = made_up(stand), network(stand), 0.4
    weight = 1.0 / torch.bincount(rows.unit_id)[rows.unit_id].float()
    batch, draw = PhysicalBatch(rows.inputs, rows.targets, rows.unit_id, weight), torch.tensor([0, 3, 7, 8, 39])
    found = recompute(net, loss_of(clip), batch, draw, clip)
    assert float((found.norms > clip).double().mean()) in (0.2, 0.4, 0.6, 0.8)  # on both sides of C
    assert torch.allclose(
        clipped_sum(clip, unit_gradients(clip, net, rows), draw), found.clipped_sum, rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["execution.dtype=float64", "privacy.noise=fast"],
        ["clipping.engine=opacus_ghost", "privacy.clipping_norm=100"],
        ["execution.dtype=bfloat16", "clipping.engine=vmap", "privacy.clipping_norm=0.01"],
    ],
)
def test_an_honest_loop_passes(words: list[str]) -> None:
    """False alarms: 1e-7 of the laws of noise, 2e-6 of the run that checks itself; each."""
    assert [one.check for one in long_runs(stand_of(*words)) if one.passed is not True] == []


Change = Callable[[Trainer, int, Any], None]


def on_sum(change: Change) -> Callable[[pytest.MonkeyPatch], None]:
    """Lets ``change`` see every draw's sum before its noise."""
    original = Trainer._clipped_sum

    def clipped_sum(self: Trainer, step: int, total: Any) -> StepReport:
        report = original(self, step, total)
        change(self, step, total)
        return report

    return lambda patch: patch.setattr(Trainer, "_clipped_sum", clipped_sum)


def on_release(change: Change) -> Callable[[pytest.MonkeyPatch], None]:
    original = Trainer._release

    def release(self: Trainer, step: int, total: Any) -> None:
        original(self, step, total)
        change(self, step, total)

    return lambda patch: patch.setattr(Trainer, "_release", release)


def on_noise(change: Callable[[Tensor, float], Tensor]) -> Callable[[pytest.MonkeyPatch], None]:
    original = SecureNoise.pieces

    def pieces(self: SecureNoise, step: int, count: int) -> Iterator[Tensor]:
        whole = torch.cat([piece.clone() for piece in original(self, step, count)])
        return iter([change(whole, self.scale)])

    return lambda patch: patch.setattr(SecureNoise, "pieces", pieces)


def _into_second_moment(trainer: Trainer, step: int, total: Any) -> None:
    for parameter in trainer.parameters:
        if "exp_avg_sq" in trainer.optimizer.state.get(parameter, {}):
            trainer.optimizer.state[parameter]["exp_avg_sq"] *= 1.0 + 1e-3 * float(total.flat()[0].sign())


def _into_average(trainer: Trainer, step: int, total: Any) -> None:
    if trainer.average is not None:
        trainer.average._mean[0] += 1e-5 * total.flat()[0].float().sign()


def _keep_the_sum(trainer: Trainer, step: int, total: Any) -> None:
    held = trainer.__dict__.setdefault("clean", total.flat().clone())
    held.copy_(total.flat())


def _a_share_of_it(trainer: Trainer, step: int, total: Any) -> None:
    scale = 5e-4 * (trainer.grid or 1.0) / trainer.plan.expected_batch_size
    sizes = [p.numel() for p in trainer.parameters]
    for parameter, piece in zip(trainer.parameters, trainer.__dict__["clean"].split(sizes), strict=False):
        assert parameter.grad is not None
        parameter.grad += scale * piece.view(parameter.shape)


def _decays_more(trainer: Trainer, step: int, total: Any) -> None:
    for group in trainer.optimizer.param_groups:
        group["weight_decay"] = 1e-3 * float(total.flat()[:5].norm())


@pytest.mark.parametrize(
    ("plant", "check"),
    [
        (on_sum(_into_second_moment), "post-processing"),
        (on_sum(_into_average), "post-processing"),
        (on_sum(_decays_more), "post-processing"),
        (on_noise(lambda v, s: (v * s * len(v) ** 0.5 / v.norm()).round()), "noise, with units"),
        (on_noise(lambda v, s: (v - v.mean()).round()), "noise, with units"),
    ],
    ids=["second moment", "average", "weight decay", "one norm", "centred"],
)
def test_what_comes_by_another_road_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], check: str, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert check in failed(stand)


def test_a_little_of_the_sum_beside_the_noise_is_found(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five parts in 10,000, which one step's rounding may hide: only many steps together show it."""
    on_sum(_keep_the_sum)(monkeypatch)
    on_release(_a_share_of_it)(monkeypatch)
    found = {one.check: one for one in long_runs(stand)}
    assert (
        found["long run, replay"].passed is False and "of the sum is in the releases" in found["long run, replay"].says
    )


def test_the_average_is_released_from_releases(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Average.settle

    def settle(self: Average) -> None:
        self._mean[0] *= 1.01
        original(self)

    monkeypatch.setattr(Average, "settle", settle)
    assert "post-processing" in failed(stand)


def test_bits_that_are_read_beside_the_noise_are_found(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second vector under a key of its own, which no address of the run's key shows."""
    original = SecureNoise.pieces

    def pieces(self: SecureNoise, step: int, count: int) -> Iterator[Tensor]:
        if step == 20:
            Keystream().open(Purpose.NOISE, step).uint64(count)
        return original(self, step, count)

    monkeypatch.setattr(SecureNoise, "pieces", pieces)
    found = {one.check: one for one in long_runs(stand)}
    assert (found["long run, addresses"].passed, found["long run, addresses"].step) == (False, 21)


def test_a_short_run_that_falls_over_leaves_the_others(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    original = module.small_run

    def falling(stand: Stand, planned: int, optimizer: OptimizerConfig, **how: Any) -> Any:
        if optimizer.name == "adamw":
            raise IndexError("nobody there")
        return original(stand, planned, optimizer, **how)

    monkeypatch.setattr(module, "small_run", falling)
    found = {one.check: one for one in long_runs(stand)}
    assert found["short runs"].passed is False and "adamw ends in IndexError" in found["short runs"].says
    assert found["post-processing"].passed


def test_addresses_are_told_and_the_key_stream_is_as_it_was() -> None:
    before = Keystream.open
    with addresses() as opened:
        keys, other = Keystream(), Keystream()
        keys.open(Purpose.DRAW, 3).uint64(2)
        other.open(Purpose.NOISE, 3)
    assert [(one.keys, one.purpose, one.step, one.read) for one in opened] == [
        (0, Purpose.DRAW, 3, [16]),
        (1, Purpose.NOISE, 3, []),
    ]
    assert Keystream.open is before


@pytest.mark.parametrize(
    ("schedule", "rates"), [("constant", [4.0, 8.0, 12.0, 12.0]), ("linear", [4.0, 8.0, 12.0, 6.0])]
)
def test_the_learning_rate_written_down_apart(schedule: str, rates: list[float]) -> None:
    config = OptimizerConfig(lr=12.0, schedule=schedule, warmup_steps=2)
    assert [rate_at(config, step, 4) for step in range(4)] == pytest.approx(rates)


def _error(error: Exception) -> Callable[[], Result]:
    def check() -> Result:
        raise error

    return check


def test_an_error_is_a_failed_check_and_a_refusal_stays_one() -> None:
    (found,) = guarded("shapes", _error(RuntimeError("sizes of tensors\nmust match")))
    assert (found.check, found.passed) == ("shapes", False) and "RuntimeError: sizes of tensors" in found.says
    (found,) = guarded("claim", _error(ClaimRejected("selfcheck", "noise", "is off", "stop")))
    assert found.passed is False
    with pytest.raises(ConfigError):
        list(guarded("layer", _error(ConfigError("clipping.engine", "x", "has no rule", "choose another"))))
    with pytest.raises(MemoryError):
        list(guarded("memory", _error(MemoryError())))
