"""Mistakes in what a run promises and in how its parts are sized."""

from __future__ import annotations

from typing import Any

import dptrain.privacy.mechanism as mechanism_module
import dptrain.training.assemble as assemble_module
from dptrain.privacy import accounting
from dptrain.privacy.accounting import Event
from dptrain.privacy.grid import grid_step
from dptrain.privacy.mechanism import DPSGD

from .shared import Mutant, Patch


def one_step_unpriced(patch: Patch) -> None:
    """The price is that of all steps but the first, as of intervals between them: 1 step in 24 is free."""
    original = DPSGD.event

    def event(self: DPSGD, steps: int | None = None) -> Event:
        taken = self.steps if steps is None else steps
        return original(self, max(1, taken - 1))

    patch(DPSGD, "event", event)


def steps_priced_by_two(patch: Patch) -> None:
    """Two physical batches count as one priced step: half of the steps are free."""
    original = DPSGD.event

    def event(self: DPSGD, steps: int | None = None) -> Event:
        taken = self.steps if steps is None else steps
        return original(self, (taken + 1) // 2)

    patch(DPSGD, "event", event)


def slack_priced_as_noise(patch: Patch) -> None:
    """The price divides the noise by C, not by C (1 + s): a multiplier 5 % above the true one at a slack of 0.05."""

    def step_event(self: DPSGD) -> Event:
        multiplier = self.noise_std / self.clipping_norm
        return accounting.poisson_sampled(self.sampling_rate, accounting.gaussian(multiplier))

    patch(DPSGD, "step_event", step_event)


def looks_forgotten(patch: Patch) -> None:
    """What the run releases beside its steps, noisy counts of right answers, is not in its price."""
    original = mechanism_module.rest_of

    def rest_of(beside: Any, trials: Any) -> Any:
        return original((), trials)

    patch(mechanism_module, "rest_of", rest_of)


def sampled_priced_twice(patch: Patch) -> None:
    """The price has the chance that a unit is in a physical batch of the draw, half of q, and so amplifies twice."""

    def step_event(self: DPSGD) -> Event:
        return accounting.poisson_sampled(self.sampling_rate / 2.0, accounting.gaussian(self.noise_multiplier))

    patch(DPSGD, "step_event", step_event)


def grid_for_norm_of_1(patch: Patch) -> None:
    """The grid is that of C = 1, where C is 0.001: rounding makes parts of up to 1.25 C, measured 1.01 C."""
    patch(assemble_module, "grid_step", lambda norm, slack, count: grid_step(1.0, slack, count))


MUTANTS: dict[str, Mutant] = {
    "one_step_unpriced": ("own", "one step of 24 is not priced", one_step_unpriced, ("privacy.steps=24",)),
    "steps_priced_by_two": ("jax_privacy 287", "half of the steps are priced", steps_priced_by_two, ()),
    "slack_priced_as_noise": (
        "own",
        "multiplier priced without the slack",
        slack_priced_as_noise,
        ("privacy.sensitivity_slack=0.05",),
    ),
    "looks_forgotten": (
        "3b.28",
        "noisy evaluation is not priced",
        looks_forgotten,
        ("evaluation.metrics=dp", "evaluation.noise_multiplier=4"),
    ),
    "sampled_priced_twice": ("jax_privacy 372", "priced at half of q", sampled_priced_twice, ()),
    "grid_for_norm_of_1": (
        "own",
        "grid for C = 1 where C is 0.001",
        grid_for_norm_of_1,
        ("clipping.engine=vmap", "privacy.clipping_norm=0.001"),
    ),
}
