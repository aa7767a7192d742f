"""Physical batches: a draw laid out in tensors of one fixed shape. A performance matter only."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PhysicalBatch:
    """Rows that go through the model at once. Every batch of a run has the same R, padded.

    A unit's rows are never split between two physical batches.
    """

    inputs: Tensor  # (R, *input_shape)
    targets: Tensor  # (R,)
    unit: Tensor  # (R,) int64: slot, in 0..R-1, of the unit that the row belongs to
    weight: Tensor  # (R,) float32: 1 / rows of the row's unit in this draw; exactly 0 for padding rows

    @property
    def num_slots(self) -> int:
        """Number of unit slots, R; slots that no row points at contribute nothing."""
        return len(self.weight)
