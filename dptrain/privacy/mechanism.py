"""DP-SGD as an object: what it draws, how much one unit can move it, which noise it adds, what it costs.

The numbers that must belong together come out of one object, so that a sampler, a sensitivity and a price
that do not fit cannot be composed. A second mechanism would be a second class with these same members.
"""

from __future__ import annotations

from dataclasses import dataclass

from dptrain.privacy import accounting
from dptrain.privacy.accounting import Event


@dataclass(frozen=True, kw_only=True)
class DPSGD:
    """Poisson-sampled Gaussian mechanism on clipped sums (Abadi et al. 2016).

    Guarantee: every step releases ``clipped sum + N(0, noise_std^2)`` on a fresh Poisson draw; the divisor,
    the sampling rate and the number of steps are public constants.
    """

    sampling_rate: float
    """q: probability with which each unit is in a draw, in (0, 1]."""
    noise_multiplier: float
    """Noise standard deviation over sensitivity, above 0."""
    steps: int
    """Planned number of steps T."""
    clipping_norm: float
    """C: norm to which a unit's gradient is clipped."""
    sensitivity_slack: float
    """s: the share of C set aside for rounding and arithmetic."""
    divisor: float
    """The public expected batch size that a noisy sum is divided by."""

    name = "dpsgd"
    sampler = "poisson"

    @property
    def sensitivity(self) -> float:
        """Most that one unit can move a clipped sum, in norm: C (1 + s)."""
        return self.clipping_norm * (1.0 + self.sensitivity_slack)

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise in each coordinate of the sum, in the gradient's unit."""
        return self.noise_multiplier * self.sensitivity

    def step_event(self) -> Event:
        """One step, as plain data."""
        return accounting.poisson_sampled(self.sampling_rate, accounting.gaussian(self.noise_multiplier))

    def event(self, steps: int | None = None) -> Event:
        """The first ``steps`` steps (all that are planned, when left out), as plain data."""
        return accounting.self_composed(self.steps if steps is None else steps, self.step_event())

    def admits(self, steps_done: int) -> bool:
        """Whether one more step stays within the plan."""
        return steps_done < self.steps

    def signal_to_noise(self, num_parameters: int) -> float:
        """Best case of one step: norm of a sum of aligned clipped gradients over the norm of its noise."""
        return self.divisor * self.clipping_norm / (self.noise_std * num_parameters**0.5)
