"""Composition of many planned runs, against dp-accounting's own composition of the same steps."""

from __future__ import annotations

import random

import pytest

from dptrain.errors import ConfigError
from dptrain.privacy import accounting
from dptrain.privacy.composition import compose_epsilon


def runs(count: int, seed: int) -> list[tuple[float, float, int]]:
    draw = random.Random(seed)
    return [(draw.uniform(0.005, 0.05), draw.uniform(1, 4), draw.randint(50, 800)) for _ in range(count)]


def parts(made: list[tuple[float, float, int]]) -> list[tuple[accounting.Event, int]]:
    return [(accounting.poisson_sampled(q, accounting.gaussian(s)), steps) for q, s, steps in made]


def direct(made: list[tuple[float, float, int]], delta: float) -> float:
    """The library alone: each run composed with itself, then run by run, on a fine grid."""
    import dp_accounting as dp
    from dp_accounting.pld import privacy_loss_distribution as pld

    found = None
    for rate, sigma, steps in made:
        one = pld.from_gaussian_mechanism(
            sigma,
            value_discretization_interval=1e-4,
            sampling_prob=rate,
            neighboring_relation=dp.NeighboringRelation.REPLACE_SPECIAL,
        ).self_compose(steps)
        found = one if found is None else found.compose(one)
    assert found is not None
    return float(found.get_epsilon_for_delta(delta))


@pytest.mark.parametrize(("count", "seed", "delta"), [(2, 1, 1e-5), (12, 2, 1e-6), (25, 3, 1e-5)])
def test_within_one_percent_of_direct_composition_and_never_below(count: int, seed: int, delta: float) -> None:
    made = runs(count, seed)
    exact = direct(made, delta)
    # The direct number is rounded up as well, by at most 0.1 % on its finer grid.
    assert 0.999 * exact <= compose_epsilon(parts(made), delta) <= 1.01 * exact


def test_equal_steps_are_one_group() -> None:
    step = accounting.poisson_sampled(0.01, accounting.gaussian(1.1))
    once = compose_epsilon([(step, 300)], 1e-5)
    assert compose_epsilon([(step, 100), (step, 0), (step, 200)], 1e-5) == once
    assert once == accounting.epsilon(accounting.self_composed(300, step), 1e-5)
    assert compose_epsilon([], 1e-5) == 0.0 == compose_epsilon([(step, 0)], 1e-5)


def test_plain_gaussians_agree_with_the_closed_form() -> None:
    """Gaussian noise composes exactly: multipliers s1, s2, ... weigh as one of (sum s_i^-2)^-1/2."""
    sigmas = [5.0, 8.0, 11.0, 20.0]
    together = sum(sigma**-2 for sigma in sigmas) ** -0.5
    exact = accounting.epsilon(accounting.gaussian(together), 1e-6)
    found = compose_epsilon([(accounting.gaussian(sigma), 1) for sigma in sigmas], 1e-6)
    assert 0.999 * exact <= found <= 1.01 * exact


def test_what_cannot_be_composed_is_refused() -> None:
    step = accounting.poisson_sampled(0.01, accounting.gaussian(1.1))
    with pytest.raises(ConfigError, match="too small"):
        compose_epsilon([(step, 100_000)], 1e-9)
    with pytest.raises(ConfigError):
        compose_epsilon([({"type": "laplace"}, 1)], 1e-5)
