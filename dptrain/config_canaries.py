"""Settings of canaries: units of the run's own making that an audit looks for later."""

from __future__ import annotations

from dataclasses import dataclass

from dptrain.ranges import choice, number

KINDS = ("crafted", "natural")


@dataclass
class CanaryConfig:
    """What a training run plants so that its claim can be tested (``dptrain audit``). See docs/canaries.md."""

    canaries: int = 0
    """Canaries, each in the training data or not by a fair coin of its own; at most the public size, 0 for none. Below
    100 little can be shown."""
    canary_kind: str = "crafted"
    """crafted (made-up rows are added; no record is left out) or natural (records of the data; those whose coin says so
    are left out of training)."""

    def __post_init__(self) -> None:
        number("audit.canaries", self.canaries, low=0, high=1_000_000)
        choice("audit.canary_kind", self.canary_kind, KINDS)
