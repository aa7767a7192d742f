"""The plan: everything that determines the guarantee, fixed before any private row is read.

``compile_plan`` takes the typed settings and the declared public size, solves for what was left open, and
prices it. Shuffled batches, division by the realised batch and rates taken from a private count cannot be
written down in it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dptrain.config_privacy import PrivacyConfig
from dptrain.errors import ConfigError
from dptrain.privacy import accounting, calibrate
from dptrain.privacy.accounting import Event
from dptrain.privacy.mechanism import DPSGD, rest_of
from dptrain.privacy.selection import Trials
from dptrain.privacy.stopping import epsilon_when_stopped

SCHEMA = "dptrain.plan/1"
NOISE_RESERVE = 1e-6
"""Share of delta kept for the distance of the noise sampler from an ideal Gaussian (see docs/noise.md)."""
DELTAS = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A compiled promise. ``mechanism`` is None for training without privacy."""

    mechanism: DPSGD | None
    steps: int
    sampling_rate: float
    expected_batch_size: float
    public_size: int
    unit: str
    max_rows_per_unit: int
    adjacency: str
    noise: str
    delta: float
    epsilon: float | None
    target_epsilon: float | None
    solved_for: str | None
    warnings: tuple[str, ...] = ()

    @property
    def is_private(self) -> bool:
        """Whether the run promises anything."""
        return self.mechanism is not None

    @property
    def priced_delta(self) -> float:
        """Delta left for the mechanism after the noise sampler's reserve."""
        return self.delta * (1.0 - NOISE_RESERVE)

    def epsilon_after(self, steps_done: int) -> float | None:
        """Epsilon that may be claimed when the run ends after ``steps_done`` steps; None without privacy."""
        if self.mechanism is None or self.epsilon is None:
            return None
        return epsilon_when_stopped(self.mechanism, steps_done, self.priced_delta, self.adjacency, self.epsilon)

    def odometer(self, counts: list[int]) -> list[float]:
        """Planned epsilon of the first n steps for each n: the curve shown beside accuracy.

        At most 40 of the counts are priced, on the coarse grid; the others take the price of the next one, which
        is higher, never lower. The last is the plan's own epsilon where it is the planned number of steps. What is
        beside the steps counts from the first on; of a selection nothing is out before all of it is.
        """
        if self.mechanism is None or self.epsilon is None or not counts:
            return []
        if self.mechanism.trials is not None:
            return [self.epsilon] * len(counts)
        stride = -(-len(counts) // 40)
        priced = counts[::-1][::stride][::-1]
        if self.mechanism.beside:
            events = [self.mechanism.event(n) for n in priced]
            values = [accounting.epsilon(e, self.priced_delta, self.adjacency, accounting.COARSE) for e in events]
        else:
            step = self.mechanism.step_event()
            values = accounting.epsilon_over_steps(step, priced, self.priced_delta, self.adjacency, accounting.COARSE)
        if priced[-1] == self.steps:
            values[-1] = self.epsilon
        return [values[bisect_left(priced, count)] for count in counts]

    def epsilon_at(self) -> list[dict[str, float]]:
        """The guarantee at several deltas; one guarantee, read at different points."""
        if self.mechanism is None:
            return []
        floor = accounting.smallest_delta(self.steps) / (1.0 - NOISE_RESERVE)
        deltas = sorted({*(d for d in DELTAS if d > floor), self.delta}, reverse=True)
        shares = [delta * (1.0 - NOISE_RESERVE) for delta in deltas]
        values = accounting.epsilons(self.mechanism.event(), shares, self.adjacency)
        return [{"delta": delta, "epsilon": value} for delta, value in zip(deltas, values, strict=True)]

    def to_json(self, num_parameters: int | None = None, odometer: dict[str, list] | None = None) -> dict[str, Any]:
        """The plan as plain data (plan.json)."""
        shared = {
            "schema": SCHEMA,
            "private": self.is_private,
            "sampling": "poisson",
            "sampling_rate": self.sampling_rate,
            "expected_batch_size": self.expected_batch_size,
            "steps": self.steps,
            "public_size": self.public_size,
            "unit": self.unit,
            "max_rows_per_unit": self.max_rows_per_unit,
            "warnings": list(self.warnings),
        }
        if self.mechanism is None:
            return shared | {"mechanism": "none"}
        snr = self.mechanism.signal_to_noise(num_parameters) if num_parameters else None
        return shared | {
            "mechanism": self.mechanism.name,
            "divisor": self.mechanism.divisor,
            "noise_multiplier": self.mechanism.noise_multiplier,
            "clipping_norm": self.mechanism.clipping_norm,
            "sensitivity_slack": self.mechanism.sensitivity_slack,
            "sensitivity": self.mechanism.sensitivity,
            "noise": self.noise,
            "adjacency": self.adjacency,
            "target_epsilon": self.target_epsilon,
            "delta": self.delta,
            "epsilon": self.epsilon,
            "epsilon_at": self.epsilon_at(),
            "solved_for": self.solved_for,
            "accountant": accounting.method(),
            "event": self.mechanism.event(),
            "odometer": odometer,
            "signal_to_noise": snr,
        }


def compile_plan(
    config: PrivacyConfig, public_size: int, beside: Sequence[Event] = (), trials: Trials | None = None
) -> Plan:
    """Turns settings into a priced plan. Reads no data.

    Guarantee: where the plan is private, running its mechanism for its steps is (epsilon, delta)-DP for one
    unit under its adjacency; where a target was given, epsilon does not exceed it.

    Args:
        config: validated privacy settings.
        public_size: declared number of training units, at least 2.
        beside: what else the run releases of the same units (``DPSGD.beside``).
        trials: where the run is the best of several, the law of their number.

    Raises:
        ConfigError: delta is not below 1/public_size, or the target cannot be met.
    """
    if config.is_private and config.delta >= 1.0 / public_size and not config.allow_large_delta:
        raise ConfigError(
            "privacy.delta",
            config.delta,
            f"is not below 1/{public_size}, so that publishing one unit outright would pass",
            f"set privacy.delta below {1.0 / public_size:.2g}, or privacy.allow_large_delta=true",
        )
    warnings = []
    batch = float(config.expected_batch_size)
    if batch > public_size:
        warnings.append(
            f"privacy.expected_batch_size={batch:g} is above the public size {public_size}: every unit is in every "
            "draw (q=1), the expected batch is the public size, and sampling amplifies nothing"
        )
        batch = float(public_size)
    rate = batch / public_size
    steps = given_steps(config, public_size)
    shared: dict[str, Any] = {
        "sampling_rate": rate,
        "expected_batch_size": batch,
        "public_size": public_size,
        "unit": config.unit,
        "max_rows_per_unit": config.max_rows_per_unit,
        "adjacency": config.adjacency,
        "noise": config.noise,
        "delta": config.delta,
        "target_epsilon": config.epsilon,
        "warnings": tuple(warnings),
    }
    if not config.is_private:
        assert steps is not None
        return Plan(mechanism=None, steps=steps, epsilon=None, solved_for=None, **shared)
    return _solve(config, rate, batch, steps, tuple(beside), trials, shared)


def given_steps(config: PrivacyConfig, public_size: int) -> int | None:
    """Number of steps that the settings give; None where it is solved for."""
    rate = min(float(config.expected_batch_size), float(public_size)) / public_size
    if config.steps is not None:
        return config.steps
    return None if config.epochs is None else max(1, round(config.epochs / rate))


def _solve(
    config: PrivacyConfig,
    rate: float,
    batch: float,
    steps: int | None,
    beside: tuple[Event, ...],
    trials: Trials | None,
    shared: dict[str, Any],
) -> Plan:
    whole = rest_of(beside, trials)
    delta = config.delta * (1.0 - NOISE_RESERVE)
    sigma, solved_for = config.noise_multiplier, "epsilon"
    if sigma is None:
        assert config.epsilon is not None and steps is not None
        sigma = calibrate.noise_multiplier_for(config.epsilon, delta, rate, steps, config.adjacency, whole)
        solved_for = "noise_multiplier"
    elif steps is None:
        assert config.epsilon is not None
        steps = calibrate.steps_for(config.epsilon, delta, rate, sigma, config.adjacency, whole)
        solved_for = "steps"
    mechanism = DPSGD(
        sampling_rate=rate,
        noise_multiplier=sigma,
        steps=steps,
        clipping_norm=config.clipping_norm,
        sensitivity_slack=config.sensitivity_slack,
        divisor=batch,
        beside=beside,
        trials=trials,
    )
    epsilon = accounting.epsilon(mechanism.event(), delta, config.adjacency)
    return Plan(mechanism=mechanism, steps=steps, epsilon=epsilon, solved_for=solved_for, **shared)
