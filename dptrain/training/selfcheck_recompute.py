"""A few private units of a few steps computed again, alone and in float64, and compared with what the engine made of
them.

In-process: nothing is written or shown but that they agree, or do not. Which steps and units is decided by the
keystream, never by data: the first step of a process, then one of every ``STRETCH``. Whether a model can be recomputed
is tried on a row of zeros, so that the number of recomputed steps, which the statement shows, depends on no record.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from dptrain.data.batches import PhysicalBatch
from dptrain.gradients.protocol import ClippingRule, Engine, RowLoss, UnitStats, trainable
from dptrain.gradients.recompute import unit_gradients
from dptrain.keystream import Keystream, Purpose

STRETCH = 64
"""Steps of which one is looked at."""
TOGETHER = 0.02
"""What units that are clipped together may differ a unit, over C, from each of them clipped alone: whatever the dtype,
as it is the same arithmetic twice."""
HARDER = ("opacus_ghost",)
"""Engines that clip rows whose terms cancel to less than C: their sums may be shorter, never longer."""


@dataclass
class Recomputation:
    """Compares units' clipped gradients with what float64 autograd gives.

    Args:
        module: as trained.
        row_loss: (outputs (1, ...), targets (1,)) -> (1,) loss.
        rule: clipping norm and grid.
        sensitivity: what a unit's contribution may have in norm, C (1 + s).
        tolerance: rounding of the run's dtype that is let pass, as a share of the larger of norm and C.
        units: most units looked at on a step.
        steps: planned.
        keystream: of the choice (``Purpose.SELFCHECK``).
        autocast: of the run; None: none.
        is_possible: whether the model runs in float64, by a row of zeros; one that does not is not recomputed, and no
            step counts. None: not tried yet.
    """

    module: nn.Module
    row_loss: RowLoss
    rule: ClippingRule
    sensitivity: float
    tolerance: float
    units: int
    steps: int
    keystream: Keystream
    autocast: torch.dtype | None = None
    steps_passed: int = 0
    is_possible: bool | None = None
    _chosen: int = 0
    _end: int = 0
    _is_now: bool = False
    _is_due: bool = False
    _words: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.uint64))

    def begin(self, step: int) -> None:
        """Called before each step, from 1 (or where a resumed run goes on): chooses anew when a stretch is over."""
        if step >= self._end:
            length = 1 if self._end == 0 else max(1, min(STRETCH, self.steps - step + 1))
            self._words = self.keystream.open(Purpose.SELFCHECK, step).uint64(1 + self.units)
            self._chosen = step + int(self._words[0] % np.uint64(length))
            self._end = step + length
        self._is_now = self._is_due = step == self._chosen

    def end(self) -> None:
        """Called after each step's clipped sum; a draw without a unit had nothing to be looked at, and counts."""
        self.steps_passed += int(self._is_now and self.is_possible is not False)

    def check(self, engine: Engine, batch: PhysicalBatch, stats: UnitStats) -> str | None:
        """What is wrong with the step's first physical batch, in words; None where nothing is, or it is not looked at.

        Args:
            engine: of the private units.
            batch: as it went through the engine.
            stats: what the engine said of it.
        """
        if not self._is_due:
            return None
        self._is_due = False
        if self.is_possible is None:
            self.is_possible = self._runs_on_zeros(batch)
        if not self.is_possible:
            return None
        picked = self._pick(batch)
        exact_ones = unit_gradients(self.module, self.row_loss, batch, picked)
        exact: dict[int, Tensor] = {}
        added: Tensor | float = 0.0
        for slot in picked:
            try:
                exact[int(slot)] = next(exact_ones)
            except (RuntimeError, TypeError):  # this row alone cannot go through in float64: nothing may show of it
                return None
            clipped, norm = self._clipped_by(engine, _rows_of(batch, slot[None]))
            if not float(clipped.norm()) <= self.sensitivity:  # also where it is not a number
                return "a unit's contribution is longer than the clipping norm"
            wrong = self._compare(engine, clipped, min(norm, float(stats.norms[slot])), exact[int(slot)])
            if wrong is not None and not self._is_rough(batch, slot, exact[int(slot)]):
                return wrong
            added = added + clipped
        together, _ = self._clipped_by(engine, _rows_of(batch, picked))
        far = float((together - added).norm()) > TOGETHER * self.rule.clipping_norm * len(picked)
        if far and not any(self._is_rough(batch, slot, exact[int(slot)]) for slot in picked):
            return "units that are clipped together do not add up to what each of them is clipped to alone"
        return None

    def _runs_on_zeros(self, batch: PhysicalBatch) -> bool:
        """Whether the model and its loss run in float64 at all, on a made-up row of the batch's shape."""
        first = torch.zeros(1, dtype=batch.unit.dtype, device=batch.unit.device)
        rows = torch.zeros_like(batch.inputs[:1]), torch.zeros_like(batch.targets[:1])
        made_up = PhysicalBatch(*rows, first, torch.ones_like(batch.weight[:1]))
        try:
            _ = list(unit_gradients(self.module, self.row_loss, made_up, first))
        except (RuntimeError, TypeError):  # float32 values of the model's own do not mix with float64
            return False
        return True

    def _pick(self, batch: PhysicalBatch) -> Tensor:
        """(n,) slots, at most ``units``, whose rows together fit a physical batch."""
        live = torch.unique(batch.unit[batch.weight > 0])
        places = np.unique(self._words[1:] % np.uint64(len(live))).astype(np.int64)
        return live[torch.from_numpy(places).to(live.device)]

    def _clipped_by(self, engine: Engine, batch: PhysicalBatch) -> tuple[Tensor, float]:
        """The engine's clipped sum (D,) float64 in the gradient's own unit, and the largest norm it reports."""
        size = sum(p.numel() for p in trainable(self.module).values())
        total = torch.zeros(size, dtype=torch.float64, device=batch.weight.device)
        norms = engine.add_clipped_sum(batch, total).norms
        return total * (self.rule.grid or 1.0), float(norms.max())

    def _compare(self, engine: Engine, clipped: Tensor, norm: float, exact: Tensor) -> str | None:
        """One unit's contribution and reported norm against its exact gradient (D,) float64."""
        limit, length, true = self.rule.clipping_norm, float(clipped.norm()), float(exact.norm())
        if not np.isfinite(norm) or not np.isfinite(true) or true > 1e30:
            return None  # overflow counts as nothing: it cannot be longer
        if norm < true - self.tolerance * max(true, limit):
            return "a unit's gradient is longer than the engine says"
        if true == 0.0:
            return None if length <= self._allowed else "a unit without a gradient contributes"
        factor = min(1.0, limit / max(norm, true))
        if engine.name in HARDER:
            factor = min(factor, float(clipped @ exact) / true**2)
        if float((clipped - exact * factor).norm()) > self._allowed:
            return "a unit's contribution is not its clipped gradient"
        return None

    def _is_rough(self, batch: PhysicalBatch, slot: Tensor, exact: Tensor) -> bool:
        """Whether rounding alone, in a plain step of the run's dtype, moves a unit far from its exact gradient.

        Units of huge numbers, whose logits round: no engine can be blamed for what it makes of them, within C.
        """
        (plain,) = unit_gradients(self.module, self.row_loss, batch, slot[None], True, self.autocast)
        limit, true, own = self.rule.clipping_norm, float(exact.norm()), float(plain.norm())
        if not np.isfinite(own):
            return True
        moved = plain * min(1.0, limit / max(own, 1e-300)) - exact * min(1.0, limit / max(true, 1e-300))
        return float(moved.norm()) > self._allowed / 4 or abs(own - true) > self.tolerance * max(true, limit) / 4

    @property
    def _allowed(self) -> float:
        return self.tolerance * self.rule.clipping_norm


def _rows_of(batch: PhysicalBatch, slots: Tensor) -> PhysicalBatch:
    """The rows of some slots, as a physical batch without padding."""
    rows = torch.nonzero((batch.weight > 0) & torch.isin(batch.unit, slots)).flatten()
    _, unit = torch.unique(batch.unit[rows], return_inverse=True)
    return PhysicalBatch(batch.inputs[rows], batch.targets[rows], unit, batch.weight[rows])
