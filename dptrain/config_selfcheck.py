"""Settings of the self-check: the tests that a private run makes of its own noise, clipping and sampling."""

from __future__ import annotations

from dataclasses import dataclass

from dptrain.errors import ConfigError
from dptrain.ranges import number


@dataclass
class SelfCheckConfig:
    """What a private run tests about itself while it trains. It costs no privacy: see docs/selfcheck.md."""

    enabled: bool = True
    """Whether the run checks itself; the statement says so if it does not."""
    sentinels: int = 256
    """Parameters that no record touches, one dummy unit each; even, in [16, 4096]."""
    alpha: float = 1e-4
    """Largest chance, in (0, 0.01], that a run without a fault is stopped, over all its looks together."""
    recompute_units: int = 4
    """Private units recomputed by themselves in float64 on each chosen step, in [0, 64]; 0: none."""

    def __post_init__(self) -> None:
        number("selfcheck.sentinels", self.sentinels, low=16, high=4096)
        number("selfcheck.alpha", self.alpha, low=0, high=0.01, low_open=True)
        number("selfcheck.recompute_units", self.recompute_units, low=0, high=64)
        if self.sentinels % 2:
            problem = "is odd, and half of the dummy units are above the clipping norm, half below"
            raise ConfigError("selfcheck.sentinels", self.sentinels, problem, "choose an even number")
