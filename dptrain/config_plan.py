"""Settings of ``dptrain plan``: those of a training run, and how advice on batch, steps and noise is worked out."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from dptrain.config import TrainConfig
from dptrain.errors import ConfigError
from dptrain.ranges import number

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass
class AdviceSettings:
    """What ``advise=true`` may assume. All of it is public knowledge or a wish; no private row is read."""

    compute: str | None = None
    """Most time that training may take on this machine: a number and s, m, h or d (90s, 10m, 2h). None: no limit."""
    seconds_per_row: float | None = None
    """Seconds that the gradient of one row takes, at least 0; None: timed here on made-up rows. 0: cost is told in
    gradients alone."""
    batches: list[float] = field(default_factory=list)
    """Expected batch sizes to weigh up, each at least 1; empty: the public size and its halves."""
    steps: list[int] = field(default_factory=list)
    """Numbers of steps to weigh up, each at least 1; empty: 30 to 16,000, doubling."""
    fewest_steps: float = 5.0
    """Steps that the same training would need at least if there were no noise, in [1, 1e6]: from a public proxy, where
    there is one."""
    least_kept: float = 0.9
    """Rows that keep less of the signal that epsilon allows, in [0, 1], are left out where others can be paid for."""
    tolerance: float = 0.1
    """The cheapest row is taken whose bound is at most this share above the lowest, in [0, 1]."""
    rows: int = 10
    """Rows of the table at most, in [2, 40]; each is priced exactly."""

    def __post_init__(self) -> None:
        seconds_of(self.compute)
        number("advice.seconds_per_row", self.seconds_per_row, low=0, high=1e6)
        for batch in self.batches:
            number("advice.batches", batch, low=1)
        for steps in self.steps:
            number("advice.steps", steps, low=1, high=10_000_000)
        number("advice.fewest_steps", self.fewest_steps, low=1, high=1e6)
        number("advice.least_kept", self.least_kept, low=0, high=1)
        number("advice.tolerance", self.tolerance, low=0, high=1)
        number("advice.rows", self.rows, low=2, high=40)
        if self.compute is not None and self.seconds_per_row == 0:
            problem = "is a limit on time, and advice.seconds_per_row=0 says that no time is known"
            raise ConfigError("advice.compute", self.compute, problem, "leave one of them out")


@dataclass
class PlanConfig(TrainConfig):
    """Root of ``dptrain plan``: every key of ``dptrain train`` is taken, so that every experiment can be planned."""

    advise: bool = False
    """Weigh up batches, steps and noise for the same epsilon and recommend one row, instead of showing the plan."""
    advice: AdviceSettings = field(default_factory=AdviceSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.advise and self.advice != AdviceSettings():
            raise ConfigError("advise", False, "settings below advice were given all the same", "set advise=true")


def seconds_of(compute: str | None) -> float | None:
    """Seconds of a time such as ``10m``; None for no limit.

    Raises:
        ConfigError: it is no such time.

    >>> seconds_of("1.5h")
    5400.0
    """
    if compute is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", str(compute).strip())
    if found is None or not 0 < float(found[1]) <= 1e6:
        raise ConfigError("advice.compute", compute, "is not a time above 0", "e.g. 90s, 10m, 2h or 1d")
    return float(found[1]) * UNITS[found[2]]
