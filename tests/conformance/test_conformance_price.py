"""The price check passes honest plans and names prices that leave something out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dptrain.config_privacy import PrivacyConfig
from dptrain.conformance.price import price
from dptrain.privacy.plan import Plan, compile_plan


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
