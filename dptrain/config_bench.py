"""Settings of ``dptrain bench``: those of a training run, and how long and how the benchmark looks at it."""

from __future__ import annotations

from dataclasses import dataclass, field

from dptrain.config import TrainConfig
from dptrain.ranges import choice, number


@dataclass
class BenchSettings:
    """How the benchmark is carried out."""

    engines: list[str] = field(default_factory=lambda: ["bookkeeping", "opacus_hooks", "opacus_ghost", "vmap"])
    """Engines to time, the chosen one (clipping.engine) first; loop is one unit at a time, and slow."""
    seconds: float = 60.0
    """Time for the whole benchmark, in [5, 86400]; what does not fit is left out and said so."""

    def __post_init__(self) -> None:
        number("bench.seconds", self.seconds, low=5, high=86_400)
        for name in self.engines:
            choice("bench.engines", name, ["bookkeeping", "loop", "opacus_ghost", "opacus_hooks", "vmap"])


@dataclass
class BenchConfig(TrainConfig):
    """Root of ``dptrain bench``: every key of ``dptrain train`` is taken, so that every experiment can be timed."""

    bench: BenchSettings = field(default_factory=BenchSettings)
    format: str = "text"
    """text or json, on standard output."""

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("format", self.format, ["text", "json"])
