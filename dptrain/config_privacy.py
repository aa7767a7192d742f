"""Settings of the guarantee: with ``data.public_size`` they make the plan."""

from __future__ import annotations

from dataclasses import dataclass

from dptrain.errors import ConfigError
from dptrain.ranges import choice as _choice
from dptrain.ranges import number as _number


@dataclass
class PrivacyConfig:
    """What is promised. Of ``epsilon``, ``noise_multiplier`` and the length (``steps`` or ``epochs``),
    exactly two are given and the third is solved for."""

    mechanism: str = "dpsgd"
    """``dpsgd``, or ``none`` for a non-private baseline of the same recipe (stamped as such)."""
    epsilon: float | None = 3.0
    """Target epsilon, above 0."""
    delta: float = 1e-5
    """Target delta, in (0, 1), and below 1 / data.public_size."""
    noise_multiplier: float | None = None
    """Noise standard deviation as a multiple of the sensitivity, above 0."""
    clipping_norm: float = 1.0
    """Largest norm of one unit's contribution to a step, in [1e-9, 1e9]."""
    expected_batch_size: float = 256
    """Expected number of units in a draw; the public divisor of a step. At least 1."""
    steps: int | None = None
    """Number of steps, at least 1. Give this or ``epochs``."""
    epochs: float | None = 10.0
    """Length in expected passes over the public size, above 0. Give this or ``steps``."""
    unit: str = "record"
    """Whose presence is protected: ``record``, or ``user`` (all rows with one value of data.unit_column)."""
    max_rows_per_unit: int = 1
    """With unit=user: rows kept of one user, at least 1. The rest are left out before training."""
    adjacency: str = "zero_out"
    """``zero_out`` (number of units is public) or ``add_remove`` (it is not; declare data.public_size)."""
    noise: str = "secure"
    """``secure`` (AES keystream, exact rounded Gaussian on an integer grid) or ``fast`` (floating point)."""
    sensitivity_slack: float = 1e-3
    """Sensitivity is priced as clipping_norm * (1 + slack); rounding and arithmetic live in the slack. [1e-6, 0.1]."""
    allow_large_delta: bool = False
    """Accept a delta of 1 / data.public_size or more (one unit may then be published outright)."""

    def __post_init__(self) -> None:
        _choice("privacy.mechanism", self.mechanism, ["dpsgd", "none"])
        _number("privacy.epsilon", self.epsilon, low=0, low_open=True)
        _number("privacy.delta", self.delta, low=0, high=1, low_open=True, high_open=True)
        _number(
            "privacy.noise_multiplier",
            self.noise_multiplier,
            low=0,
            low_open=True,
            remedy="choose a positive value, or privacy=off for training without privacy",
        )
        _number("privacy.clipping_norm", self.clipping_norm, low=1e-9, high=1e9)
        _number("privacy.expected_batch_size", self.expected_batch_size, low=1)
        _number("privacy.steps", self.steps, low=1)
        _number("privacy.epochs", self.epochs, low=0, low_open=True)
        _choice("privacy.unit", self.unit, ["record", "user"])
        _number("privacy.max_rows_per_unit", self.max_rows_per_unit, low=1)
        _choice("privacy.adjacency", self.adjacency, ["zero_out", "add_remove"])
        _choice("privacy.noise", self.noise, ["secure", "fast"])
        _number("privacy.sensitivity_slack", self.sensitivity_slack, low=1e-6, high=0.1)
        if self.unit == "record" and self.max_rows_per_unit != 1:
            raise ConfigError(
                "privacy.max_rows_per_unit", self.max_rows_per_unit, "a record is one row", "set privacy.unit=user"
            )
        self._check_solvable()

    def _check_solvable(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise ConfigError(
                "privacy.steps", self.steps, f"privacy.epochs={self.epochs} is set too", "set privacy.epochs=null"
            )
        has_length = self.steps is not None or self.epochs is not None
        if self.mechanism == "none":
            if not has_length:
                raise ConfigError("privacy.steps", None, "the length of training is not set", "set privacy.epochs")
            return
        given = [self.epsilon is not None, self.noise_multiplier is not None, has_length]
        if sum(given) == 3:
            raise ConfigError(
                "privacy.noise_multiplier",
                self.noise_multiplier,
                "privacy.epsilon and the length are set too, and exactly one of the three is solved for",
                "set privacy.epsilon=null to have epsilon computed, or privacy.epochs=null to have steps solved for",
            )
        if sum(given) < 2:
            raise ConfigError(
                "privacy",
                f"epsilon={self.epsilon} noise_multiplier={self.noise_multiplier}",
                "two of epsilon, noise_multiplier and steps (or epochs) are needed",
                "set one more",
            )

    @property
    def is_private(self) -> bool:
        """Whether the run promises anything."""
        return self.mechanism != "none"
