"""The self-check in a run: dummy units into every sum, the released sentinels out of it, and what follows.

The dummies are the last units of the run's own sampler and the sentinels the last coordinates of its sums: draw, sum,
rounding, noise and divisor are the run's. Only the pass that computes the dummies' clipped sum is one of its own, by a
second engine of the same kind, rule and settings, so that no record shares a pass with a dummy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dptrain.data.batches import PhysicalBatch
from dptrain.errors import ClaimRejected
from dptrain.gradients.protocol import Engine, UnitStats
from dptrain.privacy.plan import Plan
from dptrain.selfcheck.checker import Accusation, Checker
from dptrain.selfcheck.dummies import Dummies
from dptrain.training.selfcheck_recompute import Recomputation

ADVICE = (
    "no step was taken after it and those taken stay charged; see docs/selfcheck.md, and release nothing of this run"
)

DISAGREED = (
    "a private unit that was computed again in float64 is not what the engine made of it (which one and how is not "
    "shown); dptrain conform with these settings asks the same on made-up rows"
)
"""All that is said of a recomputation that failed: it is read off private units."""

KEPT = "selfcheck."
"""Before the names of its tensors in a resume state."""


@dataclass
class SelfCheck:
    """What a run carries along to check itself.

    Guarantee: no record touches a sentinel and no dummy touches a trained parameter; what is raised, shown and put on
    record depends on dummies, noise and chance alone, but for the bare fact that a recomputed unit did not agree.

    Attributes:
        dummies: units from ``num_units`` on, and the sentinels.
        engine: of the dummies.
        checker: takes the released blocks.
        num_units: private units; larger indices of a draw are dummies.
        to_noise: what turns a released gradient into planned noise deviations: divisor over deviation.
        recomputation: private units computed again in float64; None: none.
    """

    dummies: Dummies
    engine: Engine
    checker: Checker
    num_units: int
    to_noise: float
    recomputation: Recomputation | None = None
    accusation: Accusation | None = None
    _drawn: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))

    @property
    def block(self) -> nn.Parameter:
        """The sentinels."""
        return self.dummies.block

    def begin(self, step: int, draw: Tensor) -> Tensor:
        """The private units of a step's draw; its dummies are remembered for ``batch``.

        Args:
            step: from 1.
            draw: (K,) units and dummies.
        """
        if self.recomputation is not None:
            self.recomputation.begin(step)
        private = draw < self.num_units
        self._drawn = torch.zeros(len(self.dummies.size), dtype=torch.bool)
        self._drawn[draw[~private] - self.num_units] = True
        return draw[private]

    def batch(self) -> PhysicalBatch:
        """The dummies of the latest draw."""
        return self.dummies.batch(self._drawn)

    def recompute(self, step: int, engine: Engine, batch: PhysicalBatch, stats: UnitStats) -> None:
        """On chosen steps, a few private units of the step's first physical batch by themselves.

        Raises:
            ClaimRejected: they are not what the engine made of them.
        """
        if self.recomputation is not None and self.recomputation.check(engine, batch, stats) is not None:
            self._reject(Accusation("clipping", step, DISAGREED))

    def look(self, step: int) -> None:
        """Takes the block that was just released as a gradient.

        Raises:
            ClaimRejected: the blocks so far are not what the plan says.
        """
        if self.recomputation is not None:
            self.recomputation.end()
        gradient = self.block.grad
        assert gradient is not None
        block = gradient.detach().flatten().double().mul(self.to_noise).cpu().numpy()
        self._reject(self.checker.add(block, self._drawn.numpy()), step)

    def close(self, step: int) -> None:
        """The last look, at the end of a run.

        Raises:
            ClaimRejected: as ``look``.
        """
        self._reject(self.checker.look(), step)

    def record(self) -> dict[str, Any]:
        """The statement's block of a run that was not stopped by it. Public facts only."""
        found = {"state": "passed", **self.checker.record()}
        return found if "steps" not in found else {**found, "recomputed_steps": self._recomputed}

    @property
    def _recomputed(self) -> int:
        return 0 if self.recomputation is None else self.recomputation.steps_passed

    def kept(self) -> dict[str, Tensor]:
        """What a resumed run goes on from, for its sealed state."""
        arrays = {**self.checker.kept(), "recomputed": np.array(self._recomputed)}
        return {f"{KEPT}{name}": torch.from_numpy(np.array(array)) for name, array in arrays.items()}

    def take_up(self, tensors: dict[str, Tensor]) -> None:
        """Goes on from what ``kept`` gave: tests and looks of a resumed run are over all its steps."""
        arrays = {n.removeprefix(KEPT): t.numpy() for n, t in tensors.items() if n.startswith(KEPT)}
        if arrays:
            self.checker.take_up(arrays)
            if self.recomputation is not None:
                self.recomputation.steps_passed = int(arrays["recomputed"])

    def _reject(self, accusation: Accusation | None, step: int | None = None) -> None:
        if accusation is None:
            return
        self.accusation = accusation
        raise ClaimRejected(
            "selfcheck", accusation.culprit, f"step {step or accusation.step}: {accusation.says}", ADVICE
        )


def state_of(plan: Plan, check: SelfCheck | None) -> dict[str, Any] | None:
    """The statement's block: None without privacy, ``off`` where the run did not check itself."""
    if not plan.is_private:
        return None
    return {"state": "off"} if check is None else check.record()
