"""DP-SGD as an object: what it draws, how much one unit can move it, which noise it adds, what it costs.

The numbers that must belong together come out of one object, so that a sampler, a sensitivity and a price
that do not fit cannot be composed. A second mechanism would be a second class with these same members.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dptrain.privacy import accounting
from dptrain.privacy.accounting import Event
from dptrain.privacy.selection import Trials


def rest_of(beside: Sequence[Event], trials: Trials | None) -> Callable[[Event], Event]:
    """Makes the event of a whole run out of the event of its steps."""

    def whole(steps: Event) -> Event:
        run = accounting.composed([steps, *beside]) if beside else steps
        return run if trials is None else accounting.repeat_and_select(run, trials)

    return whole


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

    beside: tuple[Event, ...] = ()
    """What else the run releases of the same units: noisy evaluations, or the other runs of a sweep."""
    trials: Trials | None = None
    """The run is the best of a secret number of runs, drawn from this law; None where it is the only one."""

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
        """The first ``steps`` steps (all that are planned, when left out) and what is beside them, as plain data."""
        taken = accounting.self_composed(self.steps if steps is None else steps, self.step_event())
        return rest_of(self.beside, self.trials)(taken)

    @property
    def expected_runs(self) -> float:
        """How many runs one release stands for, on average: the mean of ``trials``."""
        return 1.0 if self.trials is None else self.trials.mean

    def admits(self, steps_done: int) -> bool:
        """Whether one more step stays within the plan."""
        return steps_done < self.steps

    def signal_to_noise(self, num_parameters: int) -> float:
        """Best case of one step: norm of a sum of aligned clipped gradients over the norm of its noise."""
        return self.divisor * self.clipping_norm / (self.noise_std * num_parameters**0.5)
