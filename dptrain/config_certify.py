"""Settings of ``dptrain certify``."""

from __future__ import annotations

from dataclasses import dataclass, field

from dptrain.errors import ConfigError
from dptrain.ranges import choice, number

BOUNDS = ("one_run", "f_dp", "clopper_pearson", "gaussian", "optimal")
FAMILIES = ("unrelated", "gaussian", "laplace", "subsampled", "correlated", "bursts")


@dataclass
class CertifyConfig:
    """Root of ``dptrain certify``."""

    simulations: int = 200
    """Simulated audits of each family, in [10, 1000000]."""
    canaries: int = 1000
    """Canaries of each, in [1, 1000000]."""
    epsilon: float = 4.0
    """True epsilon of every family but unrelated, in [0.1, 20]."""
    delta: float = 1e-5
    """Delta at which epsilon is meant, in [1e-10, 0.01]."""
    confidence: float = 0.95
    """Asked of every bound, in [0.5, 1)."""
    bounds: list[str] = field(default_factory=lambda: list(BOUNDS))
    """Bounds to try: one_run, f_dp, clopper_pearson, gaussian, optimal."""
    families: list[str] = field(default_factory=lambda: list(FAMILIES))
    """Families of scores: unrelated, gaussian, laplace, subsampled, correlated, bursts."""
    into: str | None = None
    """JSON file for the table; null: only print. An existing file is written anew."""
    format: str = "text"
    """text or json, on standard output."""
    seed: int = 0
    """Of the simulations."""

    def __post_init__(self) -> None:
        number("simulations", self.simulations, low=10, high=1_000_000)
        number("canaries", self.canaries, low=1, high=1_000_000)
        number("epsilon", self.epsilon, low=0.1, high=20)
        number("delta", self.delta, low=1e-10, high=0.01)
        number("confidence", self.confidence, low=0.5, high=1, high_open=True)
        number("seed", self.seed, low=0, high=2**32 - 1)
        choice("format", self.format, ["text", "json"])
        for key, given, known in (("bounds", self.bounds, BOUNDS), ("families", self.families, FAMILIES)):
            if not given or len(set(given)) != len(given):
                raise ConfigError(key, given, "must name at least one, each once", "choose among " + ", ".join(known))
            for name in given:
                choice(key, name, known)
