"""What is remembered of the released blocks: sums that every test can be computed from."""

from __future__ import annotations

from collections import deque

import numpy as np

LAGS = 4
"""Steps back with which a step's noise is compared as a whole."""
PRINT = 8
"""Leading coordinates of each step's noise that are kept for good, so that a repeat of any earlier step is seen."""


SUMS = ("count", "total", "square", "included", "lag", "lag_count", "shift")


class Tally:
    """Sums over the blocks of the steps so far, of one run or of several side by side (R of them).

    Blocks are in units of the planned noise: a released block times divisor over the noise's deviation, so that a
    clean run's is a standard normal vector plus ``effect`` where the dummy was drawn.

    Args:
        effect: (k,) what a drawn dummy adds; even dummies are the loud ones.
        runs: R.

    Attributes:
        count, total, square: (R, 3) number, sum and sum of squares of the coordinates whose dummy was not drawn, was
            drawn and loud, was drawn and quiet.
        included: (R, k) times that each dummy was drawn.
        lag: (R, LAGS) sums of a step's noise, signed as that of l steps before in the same process; ``lag_count``:
            (LAGS,) their terms.
        shift: (R, 2) the same within a step, by one coordinate and by half of the block.
    """

    def __init__(self, effect: np.ndarray, runs: int = 1) -> None:
        size = len(effect)
        loud = np.arange(size) % 2 == 0
        self.effect = effect
        self.steps = 0
        self.count, self.total, self.square = (np.zeros((runs, 3)) for _ in range(3))
        self.included = np.zeros((runs, size), dtype=np.int64)
        self.lag, self.lag_count = np.zeros((runs, LAGS)), np.zeros(LAGS)
        self.shift = np.zeros((runs, 2))
        self.shifts = (1, size // 2)
        self.prints: list[np.ndarray] = []
        self._groups = np.stack([np.ones(size), loud, ~loud], axis=1)  # (k, 3)
        self._signs: deque[np.ndarray] = deque(maxlen=LAGS)

    @property
    def size(self) -> int:
        """k."""
        return len(self.effect)

    def add(self, block: np.ndarray, drawn: np.ndarray) -> None:
        """Takes one step's block.

        Args:
            block: (R, k) float64.
            drawn: (R, k) bool: which dummies were drawn.
        """
        self.steps += 1
        self.included += drawn
        for values, sums in ((1.0, self.count), (block, self.total), (block * block, self.square)):
            sums[:, 0] += np.where(drawn, 0.0, values).sum(1)
            sums[:, 1:] += np.where(drawn, values, 0.0) @ self._groups[:, 1:]
        noise = block - np.where(drawn, self.effect, 0.0)
        signs = np.sign(noise)
        for place, shift in enumerate(self.shifts):
            self.shift[:, place] += (noise[:, shift:] * signs[:, :-shift]).sum(1)
        for back, before in enumerate(self._signs):  # the latest step first
            self.lag[:, back] += (noise * before).sum(1)
            self.lag_count[back] += self.size
        self._signs.appendleft(signs)
        self.prints.append(noise[:, :PRINT].astype(np.float32))

    def kept(self) -> dict[str, np.ndarray]:
        """All of it but the latest signs, as arrays: what another process goes on from."""
        sums = {name: getattr(self, name) for name in SUMS}
        runs = len(self.count)
        prints = np.stack(self.prints, axis=1) if self.prints else np.empty((runs, 0, PRINT), dtype=np.float32)
        return {**sums, "steps": np.array(self.steps), "prints": prints}

    def take_up(self, kept: dict[str, np.ndarray]) -> None:
        """Goes on from what ``kept`` gave."""
        for name in SUMS:
            getattr(self, name)[...] = kept[name]
        self.steps = int(kept["steps"])
        self.prints = list(kept["prints"].swapaxes(0, 1))
        self._signs.clear()
