"""Settings of ``dptrain conform``: those of a training run, and how much is looked at."""

from __future__ import annotations

from dataclasses import dataclass, field

from dptrain.config import TrainConfig
from dptrain.ranges import choice, number


@dataclass
class ConformSettings:
    """How much the checks look at."""

    subject: str = "dptrain"
    """dptrain: the parts that a run of these settings is made of; opacus: Opacus' PrivacyEngine around it."""
    units: int = 24
    """Public size of the made-up data, in [12, 4096]; more find smaller errors, and take longer."""
    steps: int = 12
    """Steps of a recorded run, in [8, 1024]."""
    noise_samples: int = 30_000
    """Coordinates of noise that are tested, at least; in [1000, 10^8]. 30,000 tell 2 % low from planned."""
    draws: int = 4000
    """Draws whose law is tested, in [100, 10^6]."""
    selfcheck_steps: int = 64
    """Steps of a run with the self-check on, in [0, 10^6]; 0 leaves it out."""
    ranks: bool = True
    """Whether two processes sum one draw as well (on a CPU)."""

    def __post_init__(self) -> None:
        choice("conform.subject", self.subject, ["dptrain", "opacus"])
        number("conform.units", self.units, low=12, high=4096)
        number("conform.steps", self.steps, low=8, high=1024)
        number("conform.noise_samples", self.noise_samples, low=1000, high=100_000_000)
        number("conform.draws", self.draws, low=100, high=1_000_000)
        number("conform.selfcheck_steps", self.selfcheck_steps, low=0, high=1_000_000)


@dataclass
class ConformConfig(TrainConfig):
    """Root of ``dptrain conform``: every key of ``dptrain train`` is taken, so that every experiment can be checked."""

    conform: ConformSettings = field(default_factory=ConformSettings)
    format: str = "text"
    """text or json, on standard output."""

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("format", self.format, ["text", "json"])
