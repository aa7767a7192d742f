"""Epsilon against independent sources: the exact Gaussian formula, PRV's bracket, RDP, and closed-form sense."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dptrain.errors import ConfigError
from dptrain.privacy import accounting
from dptrain.privacy.accounting import epsilon, gaussian, poisson_sampled, self_composed, to_dp_event

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_accounting.py"


def _script() -> ModuleType:
    """The script that prints docs/results/accounting.md: its settings and its other routes are the ones tested."""
    spec = importlib.util.spec_from_file_location("check_accounting", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CHECK = _script()
SETTINGS = CHECK.SETTINGS


@pytest.mark.parametrize(("sigma", "steps", "delta"), CHECK.GAUSSIAN)
def test_full_draws_equal_the_exact_gaussian(sigma: float, steps: int, delta: float) -> None:
    got = epsilon(self_composed(steps, poisson_sampled(1.0, gaussian(sigma))), delta)
    exact = CHECK.exact(sigma / math.sqrt(steps), delta)
    assert exact <= got <= exact * (1 + 1e-3)


@pytest.mark.parametrize(("sigma", "q", "steps", "delta"), SETTINGS)
def test_inside_the_bracket_of_another_accountant(sigma: float, q: float, steps: int, delta: float) -> None:
    """Opacus' PRV accountant (Gopi et al. 2021) gives a lower and an upper bound on the true epsilon."""
    low, high = CHECK.bracket(sigma, q, steps, delta)
    got = epsilon(self_composed(steps, poisson_sampled(q, gaussian(sigma))), delta)
    assert low <= got <= high


@pytest.mark.parametrize("adjacency", ["zero_out", "add_remove"])
@pytest.mark.parametrize(("sigma", "q", "steps", "delta"), SETTINGS[:4])
def test_never_above_renyi(sigma: float, q: float, steps: int, delta: float, adjacency: str) -> None:
    event = self_composed(steps, poisson_sampled(q, gaussian(sigma)))
    assert epsilon(event, delta, adjacency) <= accounting.rdp_epsilon(event, delta, adjacency)


@settings(max_examples=6)
@given(sigma=st.floats(0.7, 6), q=st.floats(0.001, 0.3), steps=st.integers(1, 400))
def test_monotone_in_steps_noise_and_rate(sigma: float, q: float, steps: int) -> None:
    def price(s: float, rate: float, t: int) -> float:
        return epsilon(self_composed(t, poisson_sampled(rate, gaussian(s))), 1e-5, interval=1e-3)

    base = price(sigma, q, steps)
    slack = 1e-3 * base + 1e-6
    assert price(sigma, q, steps + 10) >= base - slack
    assert price(sigma * 1.2, q, steps) <= base + slack
    assert price(sigma, q * 0.8, steps) <= base + slack


def test_no_step_costs_nothing() -> None:
    assert epsilon(self_composed(0, poisson_sampled(0.1, gaussian(1.0))), 1e-5) == 0.0


def test_the_two_paths_through_dp_accounting_agree() -> None:
    """The library's own event-driven accountant gives the same number as our step-wise use of it."""
    import dp_accounting as dp
    from dp_accounting.pld import PLDAccountant

    event = self_composed(300, poisson_sampled(0.05, gaussian(2.0)))
    other = PLDAccountant(dp.NeighboringRelation.REPLACE_SPECIAL).compose(to_dp_event(event)).get_epsilon(1e-5)
    assert epsilon(event, 1e-5) == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"type": "os.system"},
        {"type": "gaussian", "noise_multiplier": 0.0},
        {"type": "gaussian", "noise_multiplier": -1.0},
        {"type": "gaussian", "noise_multiplier": math.inf},
        {"type": "gaussian", "noise_multiplier": math.nan},
        {"type": "gaussian", "noise_multiplier": 1.0, "extra": 1},
        {"type": "self_composed", "count": -5, "event": gaussian(1.0)},
        {"type": "poisson_sampled", "sampling_rate": 1.5, "event": gaussian(1.0)},
        {"type": "poisson_sampled", "sampling_rate": 0.1, "event": {"module_name": "os", "class_name": "system"}},
    ],
)
def test_events_outside_the_schema_are_refused(event: dict) -> None:
    with pytest.raises(ConfigError, match="event"):
        epsilon(event, 1e-5)


@pytest.mark.parametrize(("sigma", "steps"), [(300.0, 100_000), (20.0, 1000), (5.0, 100), (1.0, 1)])
@pytest.mark.parametrize("delta", [1e-5, 1e-8, 1e-10, 1e-12, 1e-14])
def test_small_deltas_are_priced_safely_or_refused(sigma: float, steps: int, delta: float) -> None:
    """FFT rounding makes a naive price too low at small delta; ours lies above the exact value or is refused."""
    event = self_composed(steps, poisson_sampled(1.0, gaussian(sigma)))
    if delta < accounting.smallest_delta(steps) / 1.01:
        with pytest.raises(ConfigError, match="too small"):
            epsilon(event, delta)
    else:
        assert epsilon(event, delta) >= CHECK.exact(sigma / math.sqrt(steps), delta) * (1 - 1e-9)
