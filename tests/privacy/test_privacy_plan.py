"""The plan: what is solved for holds, what cannot be promised is refused, and private counts have no way in."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dptrain.config_privacy import PrivacyConfig
from dptrain.errors import ConfigError
from dptrain.privacy import accounting
from dptrain.privacy.grid import grid_step
from dptrain.privacy.plan import compile_plan
from dptrain.privacy.stopping import RUNGS, rung


@settings(max_examples=5)
@given(target=st.floats(0.3, 10), batch=st.integers(32, 2000), epochs=st.floats(1, 20))
def test_calibrated_noise_meets_the_target_and_wastes_little(target: float, batch: int, epochs: float) -> None:
    plan = compile_plan(PrivacyConfig(epsilon=target, expected_batch_size=batch, epochs=epochs), 10_000)
    assert plan.epsilon is not None
    assert plan.epsilon <= target
    assert plan.epsilon >= 0.98 * target
    assert plan.solved_for == "noise_multiplier"


def test_steps_are_the_most_that_fit() -> None:
    plan = compile_plan(PrivacyConfig(epsilon=1.0, noise_multiplier=1.5, epochs=None, expected_batch_size=100), 10_000)
    assert plan.solved_for == "steps"
    assert plan.mechanism is not None
    assert plan.epsilon is not None
    assert plan.epsilon <= 1.0
    one_more = accounting.epsilon(plan.mechanism.event(plan.steps + 1), plan.priced_delta)
    assert one_more > 1.0
    assert plan.mechanism.admits(plan.steps - 1)
    assert not plan.mechanism.admits(plan.steps)


def test_epsilon_is_computed_from_noise_and_length() -> None:
    plan = compile_plan(
        PrivacyConfig(epsilon=None, noise_multiplier=1.2, steps=1000, epochs=None, expected_batch_size=100), 10_000
    )
    assert plan.solved_for == "epsilon"
    assert plan.epsilon == pytest.approx(1.30, abs=0.005)  # the published figure for q=.01, 1,000 steps


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"delta": 1.0}, "privacy.delta"),
        ({"delta": 1.5}, "privacy.delta"),
        ({"delta": 0.0}, "privacy.delta"),
        ({"delta": -1.0}, "privacy.delta"),
        ({"delta": math.nan}, "privacy.delta"),
        ({"epsilon": math.nan}, "privacy.epsilon"),
        ({"epsilon": 0.0}, "privacy.epsilon"),
        ({"epsilon": -1.0}, "privacy.epsilon"),
        ({"epsilon": math.inf}, "privacy.epsilon"),
        ({"epsilon": None, "noise_multiplier": math.inf}, "privacy.noise_multiplier"),
        ({"epsilon": None, "noise_multiplier": math.nan}, "privacy.noise_multiplier"),
        ({"epsilon": None, "noise_multiplier": -1.0}, "privacy.noise_multiplier"),
        ({"epsilon": None, "noise_multiplier": 0.0}, "privacy.noise_multiplier"),
        ({"clipping_norm": 0.0}, "privacy.clipping_norm"),
        ({"clipping_norm": math.nan}, "privacy.clipping_norm"),
        ({"clipping_norm": -1.0}, "privacy.clipping_norm"),
        ({"noise_multiplier": 1.0}, "privacy.noise_multiplier"),
        ({"epsilon": None}, "privacy"),
        ({"steps": 10}, "privacy.steps"),
        ({"steps": 0, "epochs": None}, "privacy.steps"),
        ({"epochs": 0.0}, "privacy.epochs"),
        ({"adjacency": "replace"}, "privacy.adjacency"),
        ({"noise": "laplace"}, "privacy.noise"),
        ({"unit": "person"}, "privacy.unit"),
        ({"max_rows_per_unit": 4}, "privacy.max_rows_per_unit"),
        ({"sensitivity_slack": 0.0}, "privacy.sensitivity_slack"),
        ({"mechanism": "shuffle"}, "privacy.mechanism"),
        ({"expected_batch_size": 0}, "privacy.expected_batch_size"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict, field: str) -> None:
    with pytest.raises(ConfigError) as refused:
        PrivacyConfig(**changes)
    assert refused.value.field == field
    assert "\n" not in str(refused.value)


def test_delta_above_one_over_n_needs_the_named_override() -> None:
    with pytest.raises(ConfigError, match="allow_large_delta"):
        compile_plan(PrivacyConfig(delta=1e-3), 1000)
    plan = compile_plan(PrivacyConfig(delta=1e-3, allow_large_delta=True, epochs=1), 1000)
    assert plan.delta == 1e-3


def test_a_batch_above_the_public_size_means_everyone_and_says_so() -> None:
    plan = compile_plan(PrivacyConfig(expected_batch_size=5000, epochs=2), 1000)
    assert plan.sampling_rate == 1.0
    assert plan.mechanism is not None
    assert plan.mechanism.divisor == 1000
    assert plan.steps == 2
    assert "q=1" in plan.warnings[0]


def test_the_reserve_for_the_sampler_is_taken_off_delta() -> None:
    plan = compile_plan(PrivacyConfig(epochs=1), 10_000)
    assert plan.mechanism is not None
    assert plan.priced_delta < plan.delta
    assert plan.epsilon == accounting.epsilon(plan.mechanism.event(), plan.priced_delta)


@given(done=st.integers(0, 997), planned=st.integers(997, 5000))
def test_a_rung_never_lies_below_the_steps_taken(done: int, planned: int) -> None:
    step = rung(done, planned)
    assert done <= step <= planned
    assert step == planned or step - done <= math.ceil(planned / RUNGS)


def test_an_early_stop_claims_less_than_the_plan_and_more_than_its_steps() -> None:
    plan = compile_plan(PrivacyConfig(epsilon=2.0, epochs=10, expected_batch_size=100), 10_000)
    assert plan.mechanism is not None
    assert plan.epsilon is not None
    claims = [plan.epsilon_after(t) for t in (0, 1, 250, 500, 900, 999, 1000)]
    assert claims[0] == 0.0
    assert claims[-1] == plan.epsilon
    assert claims == sorted(claims)  # type: ignore[type-var]
    for done, claim in zip((1, 250, 500, 900), claims[1:5], strict=True):
        assert claim is not None
        assert accounting.epsilon(plan.mechanism.event(done), plan.delta) <= claim <= plan.epsilon


def test_early_stop_claims_hold_in_the_ex_post_sense() -> None:
    """The bound of privacy/stopping.py on a two-rung example small enough to integrate.

    A rule that stops after step 1 exactly where the first output favours the neighbour is the worst a watcher can
    do; sum over rungs of max(0, P - e^eps_j Q) must stay within delta.
    """
    import numpy as np
    from scipy.stats import norm

    from dptrain.privacy.mechanism import DPSGD
    from dptrain.privacy.stopping import epsilon_when_stopped

    mechanism = DPSGD(
        sampling_rate=1.0, noise_multiplier=1.0, steps=20, clipping_norm=1.0, sensitivity_slack=1e-3, divisor=1.0
    )
    delta = 1e-3
    planned = accounting.epsilon(mechanism.event(), delta)
    first = epsilon_when_stopped(mechanism, 1, delta, "zero_out", planned)
    grid = np.linspace(-12, 13, 200_001)
    width = grid[1] - grid[0]
    p, q = norm.pdf(grid, 1, 1), norm.pdf(grid, 0, 1)
    loss_if_stopped = np.maximum(0, p - np.exp(first) * q).sum() * width
    assert loss_if_stopped <= delta / RUNGS * 1.001
    assert loss_if_stopped > 0


def test_the_odometer_never_shows_less_than_the_steps_cost() -> None:
    plan = compile_plan(PrivacyConfig(epsilon=2.0, epochs=10, expected_batch_size=100), 10_000)
    assert plan.mechanism is not None
    counts = [*list(range(3, 1000, 7)), 1000]
    curve = plan.odometer(counts)
    assert len(curve) == len(counts)
    assert curve == sorted(curve)
    assert curve[-1] == plan.epsilon
    for i in (0, 20, 77, len(counts) - 2):
        exact = accounting.epsilon(plan.mechanism.event(counts[i]), plan.priced_delta)
        ahead = counts[min(i + len(counts) // 40 + 1, len(counts) - 1)]
        later = accounting.epsilon(plan.mechanism.event(ahead), plan.priced_delta)
        assert exact <= curve[i] <= later * 1.05
    assert plan.odometer([10, 1000])[0] == pytest.approx(accounting.epsilon(plan.mechanism.event(10), 1e-5), rel=0.05)


@given(c=st.floats(1e-4, 100), slack=st.floats(1e-6, 0.1), d=st.integers(1, 10**9))
def test_rounding_to_the_grid_fits_in_the_slack(c: float, slack: float, d: int) -> None:
    step = grid_step(c, slack, d)
    assert math.log2(step) == round(math.log2(step))
    assert math.sqrt(d) * step / 2 <= slack * c / 4 * (1 + 1e-12)
    assert math.sqrt(d) * step / 2 >= slack * c / 8 * (1 - 1e-12)


def test_the_plan_takes_no_private_count() -> None:
    """q, steps and divisor come from the settings and the declared size alone; the rest is what else is released."""
    import inspect

    assert list(inspect.signature(compile_plan).parameters) == ["config", "public_size", "beside", "trials"]
