"""The price check passes honest plans and names prices that leave something out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dptrain.config import TrainConfig
from dptrain.config_privacy import PrivacyConfig
from dptrain.config_tuning import EvaluationConfig
from dptrain.conformance import price as price_module
from dptrain.conformance.price import account, of_settings, of_trials, price, prices, public_numbers
from dptrain.data.source import SourceInfo
from dptrain.privacy import mechanism, stopping
from dptrain.privacy import plan as plan_module
from dptrain.privacy.plan import Plan, compile_plan
from dptrain.privacy.privacy_filter import step_price
from dptrain.training.private_metrics import looks_event

MADE_UP = SourceInfo(name="made up", task="binary", input_shape=(4,), num_classes=2, public_size=400)
_REST = mechanism.rest_of


def plan(steps: int, epsilon: float, batch: int = 256, adjacency: str = "zero_out") -> Plan:
    return compile_plan(
        PrivacyConfig(
            epsilon=epsilon, steps=steps, epochs=None, clipping_norm=1.0, expected_batch_size=batch, adjacency=adjacency
        ),
        10_000,
    )


@pytest.mark.parametrize("adjacency", ["zero_out", "add_remove"])
@pytest.mark.parametrize("steps", [1, 300])
@pytest.mark.parametrize("epsilon", [0.3, 3.0])
def test_honest_plans_pass(steps: int, epsilon: float, adjacency: str) -> None:
    assert price(plan(steps, epsilon, adjacency=adjacency)).passed


def test_a_run_without_privacy_has_no_price() -> None:
    assert price(replace(plan(30, 3.0), mechanism=None, epsilon=None)).passed is None


@pytest.mark.parametrize(("priced", "taken"), [(23, 24), (1000, 1100)])
def test_steps_that_are_not_priced_show(priced: int, taken: int) -> None:
    honest = plan(priced, 3.0)
    assert honest.mechanism is not None
    more = replace(honest, steps=taken, mechanism=replace(honest.mechanism, steps=taken))
    assert price(more).passed is False


def test_less_noise_than_priced_shows() -> None:
    honest = plan(100, 1.0)
    assert honest.mechanism is not None
    quiet = replace(honest.mechanism, noise_multiplier=0.97 * honest.mechanism.noise_multiplier)
    assert price(replace(honest, mechanism=quiet)).passed is False


def settings(**evaluation: object) -> TrainConfig:
    privacy = PrivacyConfig(epsilon=None, noise_multiplier=4.0, steps=12, epochs=None, expected_batch_size=40)
    return TrainConfig(privacy=privacy, evaluation=EvaluationConfig(**evaluation))  # type: ignore[arg-type]


def test_everything_that_is_spent_is_asked_about_and_passes() -> None:
    config = settings(metrics="dp", noise_multiplier=12.0)
    asked = compile_plan(config.privacy, 400, looks_event(config, MADE_UP))
    found = {one.check: one for one in prices(asked, config)}
    assert all(one.passed for one in found.values())
    assert {"price", "public numbers", "price, looks", "price, best of trials", "account"} <= set(found)
    assert "12 looks" in found["price"].says


def test_looks_that_are_not_priced_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mechanism, "rest_of", lambda beside, trials: _REST((), trials))
    found = of_settings("looks", settings(metrics="dp", every=3, noise_multiplier=12.0))
    assert found.passed is False and "at its end" in found.says


def test_trials_that_are_not_priced_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mechanism, "rest_of", lambda beside, trials: _REST(beside, None))
    monkeypatch.setattr(plan_module, "rest_of", lambda beside, trials: _REST(beside, None))
    assert of_trials(settings()).passed is False


def test_a_stop_that_is_priced_like_a_plan_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delta is shared among the moments at which a run may stop: a stop costs more than so many steps planned."""
    monkeypatch.setattr(stopping, "RUNGS", 1)
    monkeypatch.setattr(stopping, "rung", lambda done, planned: done)
    found = of_settings("stop", settings())
    assert found.passed is False and "stopped after 6 steps" in found.says


def test_an_account_that_charges_too_little_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert account(settings()).passed
    monkeypatch.setattr(price_module, "step_price", lambda *given: tuple(int(0.99 * p) for p in step_price(*given)))
    assert account(settings()).passed is False


@pytest.mark.parametrize("field", ["divisor", "sampling_rate", "clipping_norm", "steps", "noise_multiplier"])
def test_public_numbers_that_are_not_the_settings_show(field: str) -> None:
    config = settings()
    honest = compile_plan(config.privacy, 400)
    assert public_numbers(honest, config).passed and honest.mechanism is not None
    wrong = replace(
        honest.mechanism, **{field: type(getattr(honest.mechanism, field))(2 * getattr(honest.mechanism, field))}
    )
    assert public_numbers(replace(honest, mechanism=wrong), config).passed is False


def test_a_target_that_is_exceeded_shows() -> None:
    config = TrainConfig(privacy=PrivacyConfig(epsilon=2.0, steps=6, epochs=None, expected_batch_size=400))
    honest = compile_plan(config.privacy, 400)
    assert public_numbers(honest, config).passed
    assert public_numbers(replace(honest, epsilon=2.1), config).passed is False
