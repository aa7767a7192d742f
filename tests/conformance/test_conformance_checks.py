"""Checks of ``dptrain conform`` by themselves: each passes on an honest part and fails on a planted fault."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from tiny_stand import stand_of
from torch import Tensor

from dptrain.conformance import engine as of_engine
from dptrain.conformance import fine, places
from dptrain.conformance.draws import each_step, empty_draws, rate_of_many, sizes_of_draws
from dptrain.conformance.places import noise_places, rounding_law
from dptrain.conformance.recorder import Watched
from dptrain.conformance.reference import only, rough_gradients
from dptrain.conformance.stand import Result, Stand
from dptrain.conformance.steps import events, given_to_optimizer, learning_rates, recorded_steps
from dptrain.data.batches import PhysicalBatch
from dptrain.data.sampler import PoissonSampler
from dptrain.gradients.bookkeeping import engine
from dptrain.gradients.protocol import UnitStats
from dptrain.keystream import Keystream, Purpose, Stream
from dptrain.noise.secure import SecureNoise
from dptrain.privacy.mechanism import DPSGD
from dptrain.training.loop import Trainer

Open = Callable[[Keystream, Purpose, int], Stream]
Check = Callable[[Stand], Iterable[Result]]


def _fine(stand: Stand) -> Iterable[Result]:
    return fine.fine_law(stand, 300_000)


def _rounded(stand: Stand) -> Iterable[Result]:
    return [rounding_law(stand)]


def honest() -> list[Watched]:
    """Two steps as they should be."""
    steps = []
    for number in (1, 2):
        steps.append(
            Watched(
                draw=torch.tensor([number]),
                exact=torch.zeros(3),
                begins_at=torch.full((3,), float(number)),
                fixed=torch.ones(2),
                trains=True,
                events=["draw", f"intent {number}", "noise", "optimizer"],
                noise=[torch.zeros(3)],
                released=[torch.zeros(3)],
                rates=[0.1],
                ends_at=torch.full((3,), number + 1.0),
                fixed_after=torch.ones(2),
            )
        )
    return steps


def test_honest_steps_pass() -> None:
    assert all(check([honest()]).passed for check in (given_to_optimizer, learning_rates))
    assert events("order", [honest()], 2).passed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("released", [torch.tensor([0.0, float("nan"), 0.0])]),
        ("fixed_after", torch.tensor([1.0, 1.5])),
        ("fixed_after", None),
        ("trains", False),
        ("ends_at", torch.zeros(3)),
        ("ends_at", None),
    ],
)
def test_the_optimizer_check_fails_on(field: str, value: Any) -> None:
    """Not finite; a buffer that moved; no call at all; evaluation mode; parameters that move between two calls."""
    steps = honest()
    setattr(steps[0], field, value)
    found = given_to_optimizer([steps])
    assert (found.passed, found.step) == (False, 1)


@pytest.mark.parametrize("rates", [[0.11], [], [0.1, 0.2]])
def test_a_learning_rate_that_moves_is_found_where_it_does(rates: list[float]) -> None:
    steps = honest()
    steps[1].rates = rates
    found = learning_rates([honest(), steps])
    assert (found.passed, found.step) == (False, 2)


@pytest.mark.parametrize(
    ("order", "says"),
    [
        (["draw", "noise", "intent 1", "optimizer"], "noise, intent 1"),
        (["draw", "intent 1", "noise", "noise", "optimizer"], "noise, noise"),
        (["draw", "intent 1", "noise"], "intent 1, noise"),
    ],
)
def test_the_order_of_events_is_found_wrong(order: list[str], says: str) -> None:
    steps = honest()
    steps[0].events = order
    found = events("order", [steps], 2)
    assert (found.passed, found.step) == (False, 1) and says in found.says


def test_a_parameter_that_moves_outside_the_optimizer_is_found_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer._release

    def leaking(self: Trainer, step: int, total: Any) -> None:
        with torch.no_grad():
            self.parameters[0].add_(1e-3)
        original(self, step, total)

    stand = stand_of()
    assert all(one.passed is not False for one in recorded_steps(stand))
    monkeypatch.setattr(Trainer, "_release", leaking)
    assert "order of events" in {one.check for one in recorded_steps(stand) if one.passed is False}


def test_a_learning_rate_that_follows_the_loss_is_found_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer._clipped_sum

    def following(self: Trainer, step: int, total: Any) -> Any:
        report = original(self, step, total)
        for group in self.optimizer.param_groups:
            group["lr"] *= 1.0 + 1e-6 * report.loss
        return report

    monkeypatch.setattr(Trainer, "_clipped_sum", following)
    assert "learning rates" in {one.check for one in recorded_steps(stand_of()) if one.passed is False}


def _addressed(address: Callable[[Keystream, Purpose, int], tuple[int, int]]) -> Open:
    original = Keystream.open

    def opened(self: Keystream, purpose: Purpose, step: int) -> Stream:
        original(self, purpose, step)
        number, place = address(self, purpose, step)
        fresh = Keystream(self._rank)
        fresh._cipher = self._cipher
        return original(fresh, number, place)  # type: ignore[arg-type]

    return opened


def _same_key(self: Keystream, rank: int = 0, test_key: bytes | None = None) -> None:
    _INIT(self, rank, test_key or b"k" * 32)


def _again(self: Keystream, purpose: Purpose, step: int) -> Stream:
    self._last_step.pop(purpose, None)
    return _OPEN(self, purpose, step)


_INIT, _OPEN = Keystream.__init__, Keystream.open


def test_an_honest_key_stream_passes() -> None:
    assert fine.addresses().passed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("open", _addressed(lambda keys, purpose, step: (Purpose.DRAW, step))),
        ("open", _addressed(lambda keys, purpose, step: (purpose, step & 0xFF))),
        ("open", _addressed(lambda keys, purpose, step: (purpose, step & 0xFFFFFFFF))),
        ("open", _addressed(lambda keys, purpose, step: (purpose, step // 2))),
        ("open", _again),
        ("__init__", _same_key),
    ],
    ids=["purposes shared", "one byte of the step", "32 bits of the step", "pairs", "twice", "one key"],
)
def test_a_wrong_key_stream_is_found(name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fine, "ADDRESSED", [*range(6), 255, 256, 257, 2**32])  # of all of them, these show it
    assert fine.addresses().passed
    monkeypatch.setattr(Keystream, name, value)
    assert fine.addresses().passed is False


BFLOAT16 = "execution.dtype=bfloat16"


@pytest.fixture(scope="module")
def rough(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPTRAIN_HOME", str(tmp_path_factory.mktemp("home")))
        yield stand_of(BFLOAT16)


def test_bfloat16_is_asked_as_finely_as_float32(rough: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """A norm 1 % low, and a factor 1 % high, which float64 gradients could not show under bfloat16."""
    assert of_engine.norms(rough).passed and of_engine.contributions(rough).passed
    original, add = engine.clip_factor, engine.BookkeepingEngine.add_clipped_sum
    with monkeypatch.context() as patch:
        patch.setattr(engine, "clip_factor", lambda norm, rule, *rest: original(0.99 * norm, rule, *rest))
        assert of_engine.contributions(rough).passed is False

    def low(self: Any, batch: Any, total: Tensor) -> UnitStats:
        told = add(self, batch, total)
        return UnitStats(0.99 * told.norms, told.losses)

    monkeypatch.setattr(engine.BookkeepingEngine, "add_clipped_sum", low)
    assert of_engine.norms(rough).passed is False


def test_gradients_that_are_no_approximation_are_found(rough: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rough_gradients(rough).passed
    add = engine.BookkeepingEngine.add_clipped_sum

    def flipped(self: Any, batch: Any, total: Tensor) -> UnitStats:
        part = torch.zeros_like(total)
        told = add(self, batch, part)
        total += part.flip(0)
        return told

    monkeypatch.setattr(engine.BookkeepingEngine, "add_clipped_sum", flipped)
    assert rough_gradients(rough).passed is False


def test_a_tolerance_just_above_c_is_found(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fine.just_above(stand).passed
    original = engine.clip_factor

    def tolerant(norm: Tensor, rule: Any, *rest: Any) -> Tensor:
        return original(torch.where(norm <= 1.05 * rule.clipping_norm, 0.0, norm), rule, *rest)

    monkeypatch.setattr(engine, "clip_factor", tolerant)
    assert fine.just_above(stand).passed is False


def test_a_deviation_without_the_slack_is_found(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fine.slack_paid(stand).passed
    monkeypatch.setattr(DPSGD, "noise_std", property(lambda self: self.noise_multiplier * self.clipping_norm))
    assert fine.slack_paid(stand).passed is False


def test_a_unit_added_twice_shows_in_a_large_batch_alone(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    assert of_engine.large_batch(stand).passed
    add = engine.BookkeepingEngine.add_clipped_sum

    def twice(self: Any, batch: PhysicalBatch, total: Tensor) -> UnitStats:
        if len(batch.weight) > 512:
            add(self, only(batch, [7]), total)
        return add(self, batch, total)

    monkeypatch.setattr(engine.BookkeepingEngine, "add_clipped_sum", twice)
    assert of_engine.large_batch(stand).passed is False
    assert of_engine.contributions(stand).passed


def _noise(change: Callable[[Tensor, float], Tensor]) -> Callable[[pytest.MonkeyPatch], None]:
    """Every step's noise, in grid steps, goes through a function of it and its deviation."""
    original = SecureNoise.pieces

    def pieces(self: SecureNoise, step: int, count: int) -> Iterator[Tensor]:
        return iter([change(torch.cat([piece.clone() for piece in original(self, step, count)]), self.scale)])

    return lambda patch: patch.setattr(SecureNoise, "pieces", pieces)


def _cut_to_zero(values: Tensor, scale: float) -> Tensor:
    return (values - 0.5 * values.sign()).trunc()


def _first_silent(values: Tensor, scale: float) -> Tensor:
    values[0] = 0.0
    return values


def _last_quiet(values: Tensor, scale: float) -> Tensor:
    values[-10:] = (0.8 * values[-10:]).round()
    return values


@pytest.mark.parametrize(
    ("name", "check", "change"),
    [
        ("noise, lattice", _fine, lambda values, scale: (values / 16).round() * 16),
        ("noise, tails", _fine, lambda values, scale: values.clamp(-3.5 * scale, 3.5 * scale)),
        ("noise, each parameter", noise_places, lambda values, scale: (0.95 * values).round()),
        ("noise, each parameter", noise_places, _last_quiet),
        ("noise, places", noise_places, _first_silent),
        ("noise, rounding", _rounded, _cut_to_zero),
    ],
)
def test_small_mistakes_of_the_noise_are_found(
    name: str, check: Check, change: Callable[[Tensor, float], Tensor], stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """False alarms on the honest noise: 1e-7 each."""
    monkeypatch.setattr(places, "SAMPLES", 1 << 17)
    assert all(one.passed for one in check(stand))
    _noise(change)(monkeypatch)
    assert name in {one.check for one in check(stand) if one.passed is False}


def test_noise_that_comes_back_after_a_hundred_steps_is_found(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "SAMPLES", 1 << 17)
    original, kept = SecureNoise.pieces, dict[int, list[Tensor]]()

    def pieces(self: SecureNoise, step: int, count: int) -> Iterator[Tensor]:
        fresh = [piece.clone() for piece in original(self, step, count)]
        kept[step] = kept[step - 100] if step == 107 else fresh
        return iter(kept[step])

    monkeypatch.setattr(SecureNoise, "pieces", pieces)
    found = {one.check: one.passed for one in noise_places(stand)}
    assert found["noise, never twice"] is False and found["noise, each parameter"]


def test_noise_in_float32_is_not_accused_of_coming_twice() -> None:
    """Its values leave half of a float64 empty; hashed as they are, a million of them would seem to meet 20 times."""
    values = torch.randn(64, 1 << 14, generator=torch.Generator().manual_seed(0)).double().numpy()
    assert places.never_twice(values, 1.0, on_grid=False).passed
    values[40, 100:104] = -values[3, 7:11]
    assert places.never_twice(values, 1.0, on_grid=False).passed is False


def _sampler(change: Callable[[PoissonSampler, int, Tensor], Tensor]) -> Callable[[pytest.MonkeyPatch], None]:
    original = PoissonSampler.draw
    return lambda patch: patch.setattr(
        PoissonSampler, "draw", lambda self, step: change(self, step, original(self, step))
    )


def _some_always(sampler: PoissonSampler, step: int, draw: Tensor) -> Tensor:
    return torch.unique(torch.cat([draw, torch.arange(0, sampler.num_units, 150)]))


def _capped(sampler: PoissonSampler, step: int, draw: Tensor) -> Tensor:
    mean = sampler.num_units * sampler.sampling_rate
    return draw[: int(mean + 2 * mean**0.5)]


def _never_empty(sampler: PoissonSampler, step: int, draw: Tensor) -> Tensor:
    return draw if len(draw) else torch.zeros(1, dtype=torch.int64)


def _first_doubled(sampler: PoissonSampler, step: int, draw: Tensor) -> Tensor:
    more = torch.nonzero(torch.rand(sampler.num_units) < 1 / 3)[:, 0]
    return draw if step else torch.unique(torch.cat([draw, more]))


@pytest.mark.parametrize(
    ("check", "change"),
    [
        (rate_of_many, _some_always),
        (sizes_of_draws, _capped),
        (empty_draws, _never_empty),
        (each_step, _first_doubled),
    ],
)
def test_small_mistakes_of_draws_are_found(
    check: Callable[[Stand], Result],
    change: Callable[[PoissonSampler, int, Tensor], Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """False alarms on honest draws: 1e-7 each."""
    crowd = stand_of("conform.units=24")
    assert check(crowd).passed
    _sampler(change)(monkeypatch)
    assert check(crowd).passed is False
