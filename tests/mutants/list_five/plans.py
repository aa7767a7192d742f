"""Mistakes in what a run promises, in numbers that go with the promise, and in its noisy looks at private rows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import dptrain.privacy.calibrate as calibrate_module
import dptrain.privacy.plan as plan_module
import dptrain.training.setup as setup_module
from dptrain.config import TrainConfig
from dptrain.data.source import SourceInfo
from dptrain.privacy import accounting
from dptrain.privacy.accounting import Event
from dptrain.privacy.mechanism import DPSGD
from dptrain.privacy.plan import Plan
from dptrain.training.private_metrics import PrivateAccuracy

from .needed import LOOKS
from .shared import Mutant, Patch

TARGET = ("privacy.noise_multiplier=null", "privacy.epsilon=2")


def target_stated(patch: Patch) -> None:
    """The multiplier that meets a target is rounded down to a digit, and the target is stated."""
    found, solve = calibrate_module.noise_multiplier_for, plan_module._solve

    def noise_multiplier_for(*args: Any) -> float:
        return math.floor(10.0 * found(*args)) / 10.0

    def solved(config: Any, *rest: Any) -> Plan:
        plan = solve(config, *rest)
        return replace(plan, epsilon=config.epsilon) if plan.solved_for == "noise_multiplier" else plan

    patch(calibrate_module, "noise_multiplier_for", noise_multiplier_for)
    patch(plan_module, "_solve", solved)


def multiplier_rounded_in_price(patch: Patch) -> None:
    """Prices are kept in a table by multipliers of one digit; 0.96 costs what 1.0 does."""
    original = accounting.sampled_gaussian

    def sampled_gaussian(step: Event) -> tuple[float, float]:
        rate, sigma = original(step)
        return rate, max(0.1, round(sigma, 1))

    patch(accounting, "sampled_gaussian", sampled_gaussian)


def rate_rounded_down_in_price(patch: Patch) -> None:
    """The sampling rate is cut to two digits for the price."""
    original = accounting.sampled_gaussian

    def sampled_gaussian(step: Event) -> tuple[float, float]:
        rate, sigma = original(step)
        return max(0.01, math.floor(100.0 * rate) / 100.0), sigma

    patch(accounting, "sampled_gaussian", sampled_gaussian)


def priced_at_physical_batch(patch: Patch) -> None:
    """The price's rate is that of one physical batch, of which two make a draw."""
    rows: dict[str, float] = {}
    original = setup_module.training_units

    def training_units(config: TrainConfig, info: SourceInfo) -> int:
        rows["size"] = float(config.execution.physical_batch_size)
        return original(config, info)

    def step_event(self: DPSGD) -> Event:
        share = min(1.0, rows.get("size", self.divisor) / self.divisor)
        return accounting.poisson_sampled(share * self.sampling_rate, accounting.gaussian(self.noise_multiplier))

    patch(setup_module, "training_units", training_units)
    patch(DPSGD, "step_event", step_event)


def odometer_linear(patch: Patch) -> None:
    """The epsilon that stands beside a look grows in proportion to the steps: too low at all but the last."""

    def odometer(self: Plan, counts: list[int]) -> list[float]:
        whole = self.epsilon
        return [] if whole is None else [whole * count / self.steps for count in counts]

    patch(Plan, "odometer", odometer)


def deltas_in_reverse(patch: Patch) -> None:
    """Of the guarantee at several deltas, epsilons and deltas are put together in opposite order."""
    original = Plan.epsilon_at

    def epsilon_at(self: Plan) -> list[dict[str, float]]:
        points = original(self)
        values = [point["epsilon"] for point in reversed(points)]
        return [{"delta": p["delta"], "epsilon": value} for p, value in zip(points, values, strict=True)]

    patch(Plan, "epsilon_at", epsilon_at)


class _Once:
    """A noise that is drawn once and given every time."""

    def __init__(self, noise: Any) -> None:
        self._noise, self._drawn = noise, torch.empty(0)

    def draw(self, step: int, count: int) -> Tensor:
        if len(self._drawn) != count:
            self._drawn = self._noise.draw(step, count)
        return self._drawn


def looks_share_noise(patch: Patch) -> None:
    """All noisy looks of a run have the same noise: what two of them differ by is exact."""
    original = PrivateAccuracy.__init__

    def built(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self._noise = _Once(self._noise)

    patch(PrivateAccuracy, "__init__", built)


MUTANTS: dict[str, Mutant] = {
    "target_stated": ("3b.20", "multiplier rounded down, target stated", target_stated, TARGET),
    "multiplier_rounded_in_price": (
        "own",
        "price at a multiplier rounded to a digit",
        multiplier_rounded_in_price,
        ("privacy.noise_multiplier=0.96",),
    ),
    "rate_rounded_down_in_price": ("own", "price at q cut to two digits", rate_rounded_down_in_price, ()),
    "priced_at_physical_batch": (
        "3b.7",
        "price at the rate of a physical batch",
        priced_at_physical_batch,
        ("execution.physical_batch_size=128",),
    ),
    "odometer_linear": ("own", "planned epsilon of a step by proportion", odometer_linear, ()),
    "deltas_in_reverse": ("own", "epsilons stand beside the wrong deltas", deltas_in_reverse, ()),
    "looks_share_noise": ("3b.28", "noisy looks share their noise", looks_share_noise, LOOKS),
}
