"""When a run looks at itself, how sure it must be before it accuses, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dptrain.selfcheck.detectors import CULPRITS, SHARES, noise_ratio, p_values
from dptrain.selfcheck.tally import Tally

SAYS = {
    "noise": "the released noise has {ratio:.3f} times the planned deviation",
    "clipping": "units above the clipping norm and units below it are not treated as they must be",
    "averaging": "clipped gradients arrive scaled, added up twice or lost, while the noise does not",
    "reuse": "noise of different steps, or of different coordinates, is not independent",
    "sampling": "dummy units are not drawn independently with the planned rate",
    "engine": "a private unit's clipped gradient is not what float64 autograd finds",
}
"""Culprit -> what was seen, in words."""


def number_of_looks(steps: int) -> int:
    """Looks of a run of at most that many steps: after 1, 2, 4, 8, ... and at the end.

    >>> [number_of_looks(steps) for steps in (1, 2, 3, 4, 5, 1000)]
    [1, 2, 3, 3, 4, 11]
    """
    powers = steps.bit_length()
    return powers + (steps & (steps - 1) != 0)


def corrected(p: np.ndarray, test: str, looks: int) -> np.ndarray:
    """A p-value that may be compared with alpha: times the looks, over the test's share of one."""
    return np.minimum(1.0, p * looks / SHARES.get(test, 1.0))


@dataclass(frozen=True)
class Accusation:
    """A run that is not what its plan says."""

    culprit: str
    """noise, clipping, averaging, reuse, sampling or engine."""
    step: int
    says: str


class Checker:
    """Takes the released block of every step and looks at all of them after 1, 2, 4, 8, ... steps and at the end.

    Guarantee: a run without a fault is accused with probability at most alpha over all its looks: each test's p-value
    is exact (or larger), and alpha is divided over looks and tests (Bonferroni), whatever the dependence among them.

    Args:
        effect: (k,) what a drawn dummy adds to its sentinel, in planned noise deviations.
        rate: q.
        steps: planned.
        alpha: see above.
    """

    def __init__(self, effect: np.ndarray, rate: float, steps: int, alpha: float) -> None:
        self.tally = Tally(effect)
        self.alpha = alpha
        self.looks = 0
        self.smallest = 1.0
        self._rate = rate
        self._planned = number_of_looks(steps)
        self._seen = 0

    def add(self, block: np.ndarray, drawn: np.ndarray) -> Accusation | None:
        """Takes one step's block, (k,) in planned noise deviations, and looks where a look is due."""
        self.tally.add(block[None], drawn[None])
        steps = self.tally.steps
        return self.look() if steps & (steps - 1) == 0 else None

    def look(self) -> Accusation | None:
        """Looks now, unless these very steps were looked at. Called once more when a run ends."""
        steps = self.tally.steps
        if steps == self._seen:
            return None
        self._seen, self.looks = steps, self.looks + 1
        ps = p_values(self.tally, self._rate)
        found = {test: float(corrected(p, test, self._planned)[0]) for test, p in ps.items()}
        self.smallest = min(self.smallest, *found.values())
        for test, culprit in CULPRITS.items():
            if found[test] < self.alpha:
                says = SAYS[culprit].format(ratio=self.ratio[0])
                return Accusation(culprit, steps, f"{says} (p {found[test]:.1g} over all looks)")
        return None

    @property
    def ratio(self) -> tuple[float, float, float]:
        """Measured over planned deviation of the noise, with its 95 % interval; not a number before the first step."""
        unknown = float("nan")
        return noise_ratio(self.tally) if self.tally.steps else (unknown, unknown, unknown)

    def line(self) -> str:
        """What is shown while a run goes: ``noise 0.999 ± .004, clipping ok, sampling ok``."""
        if not self.tally.steps:
            return ""
        ratio, low, high = self.ratio
        margin = f"{(high - low) / 2:.3f}".removeprefix("0")
        return f"noise {ratio:.3f} ± {margin}, clipping ok, sampling ok"

    def kept(self) -> dict[str, np.ndarray]:
        """What another process goes on from."""
        return {**self.tally.kept(), "looks": np.array([self.looks, self._seen]), "smallest": np.array(self.smallest)}

    def take_up(self, kept: dict[str, np.ndarray]) -> None:
        """Goes on counting and looking from what ``kept`` gave."""
        self.tally.take_up(kept)
        self.looks, self._seen = (int(number) for number in kept["looks"])
        self.smallest = float(kept["smallest"])

    def record(self) -> dict[str, Any]:
        """Public facts: all of them follow from dummies and noise. Figures that chance moves have a fixed length."""
        if not self.tally.steps:
            return {"sentinels": self.tally.size}  # the steps were taken, and checked, by trials of a search
        shown = [f"{min(value, 9.9999):.4f}" for value in self.ratio]
        return {
            "sentinels": self.tally.size,
            "steps": self.tally.steps,
            "looks": self.looks,
            "false_alarms": self.alpha,
            "smallest_p": f"{self.smallest:.4f}",
            "noise_ratio": shown[0],
            "noise_interval": shown[1:],
        }
