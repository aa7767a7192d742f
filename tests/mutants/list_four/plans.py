"""Mistakes in what a run promises, and in its noisy looks at private rows."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np

import dptrain.privacy.plan as plan_module
import dptrain.training.private_metrics as metrics_module
import dptrain.training.setup as setup_module
from dptrain.config import TrainConfig
from dptrain.config_privacy import PrivacyConfig
from dptrain.data.source import SourceInfo
from dptrain.privacy import accounting
from dptrain.privacy.accounting import Event
from dptrain.privacy.mechanism import DPSGD

from .needed import USERS
from .shared import Mutant, Patch


def priced_at_large_delta(patch: Patch) -> None:
    """The price is read off at a delta of half of 1/N, 35 times the one that is stated."""
    original = plan_module._solve

    def solve(config: PrivacyConfig, *rest: Any) -> Any:
        public_size = rest[-1]["public_size"]
        return original(replace(config, delta=max(config.delta, 0.5 / public_size)), *rest)

    patch(plan_module, "_solve", solve)


def priced_one_way(patch: Patch) -> None:
    """The price is of putting a unit in, not the larger of that and of taking it out."""

    def price(rate: float, sigma: float, count: int, delta: float, adjacency: str, interval: float) -> float:
        made: Any = accounting._composed(rate, sigma, count, adjacency, interval)
        return max(0.0, float(made._pmf_add.get_epsilon_for_delta(delta)))

    patch(accounting, "_price", price)


def priced_by_central_limit(patch: Patch) -> None:
    """The price is that of one Gaussian mechanism with mu = q sqrt(T (exp(1 / sigma^2) - 1)), a limit from below."""
    normal = NormalDist()

    def price(rate: float, sigma: float, count: int, delta: float, adjacency: str, interval: float) -> float:
        mu = rate * math.sqrt(count * math.expm1(sigma**-2))
        low, high = 0.0, 200.0
        for _ in range(60):
            middle = 0.5 * (low + high)
            tail = normal.cdf(-middle / mu - mu / 2)
            spent = normal.cdf(-middle / mu + mu / 2) - (math.exp(middle + math.log(tail)) if tail > 0 else 0.0)
            low, high = (middle, high) if spent > delta else (low, middle)
        return high

    patch(accounting, "_price", price)


def priced_optimistically(patch: Patch) -> None:
    """Privacy losses are rounded down, to a grid that is far too wide for 64 steps."""

    def price(rate: float, sigma: float, count: int, delta: float, adjacency: str, interval: float) -> float:
        from dp_accounting.pld import privacy_loss_distribution as pld

        made = pld.from_gaussian_mechanism(
            sigma,
            pessimistic_estimate=False,
            value_discretization_interval=0.05,
            use_connect_dots=False,
            sampling_prob=rate,
            neighboring_relation=accounting._relation(adjacency),
        )
        return max(0.0, float(made.self_compose(count).get_epsilon_for_delta(delta)))

    patch(accounting, "_price", price)


def looks_priced_as_sampled(patch: Patch) -> None:
    """Noisy looks are priced as if each held-out unit were in a look with probability q; all are, in every look."""
    original = setup_module.looks_event

    def looks_event(config: TrainConfig, info: SourceInfo) -> tuple[Event, ...]:
        rate = config.privacy.expected_batch_size / info.public_size
        events = original(config, info)
        return tuple(
            accounting.self_composed(e["count"], accounting.poisson_sampled(min(1.0, rate), e["event"])) for e in events
        )

    patch(setup_module, "looks_event", looks_event)


def priced_on_padded_size(patch: Patch) -> None:
    """The price's q is of the number of units filled up to whole batches: 1,536 for 1,437."""

    def step_event(self: DPSGD) -> Event:
        padded = math.ceil(self.divisor / self.sampling_rate / 256 - 1e-9) * 256
        return accounting.poisson_sampled(self.divisor / padded, accounting.gaussian(self.noise_multiplier))

    patch(DPSGD, "step_event", step_event)


def looks_count_rows(patch: Patch) -> None:
    """Noisy looks count right rows, up to four of a user, with the noise for one."""

    def unit_shares(right: np.ndarray, units: np.ndarray, rows_of: np.ndarray) -> np.ndarray:
        return np.bincount(units, weights=right, minlength=len(rows_of)).astype(np.int64) * metrics_module.GRID

    patch(metrics_module, "unit_shares", unit_shares)


MUTANTS: dict[str, Mutant] = {
    "priced_at_large_delta": ("own", "price at a larger delta than stated", priced_at_large_delta, ()),
    "priced_one_way": ("Lebeda et al. 2024", "price of one direction of adjacency", priced_one_way, ()),
    "priced_by_central_limit": ("Bu et al. 2020", "price by a central limit", priced_by_central_limit, ()),
    "priced_optimistically": ("3b.20", "losses rounded down on a wide grid", priced_optimistically, ()),
    "looks_priced_as_sampled": (
        "3b.28",
        "noisy looks priced as if sampled",
        looks_priced_as_sampled,
        ("evaluation.metrics=dp", "evaluation.noise_multiplier=4"),
    ),
    "priced_on_padded_size": ("3b.2", "priced at q of a padded size", priced_on_padded_size, ()),
    "looks_count_rows": (
        "own",
        "noisy looks count rows of users",
        looks_count_rows,
        (*USERS, "evaluation.metrics=dp"),
    ),
}
