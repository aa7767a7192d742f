"""The non-private baseline behind the engines' protocol, so that one loop serves both. It promises nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dptrain.data.batches import PhysicalBatch
from dptrain.gradients.plain import plain_sum
from dptrain.gradients.protocol import RowLoss, UnitStats


class PlainSum:
    """Adds ordinary gradient sums: no clipping, no rounding, one backward pass."""

    name = "plain"
    float_class = "none"

    def __init__(self, module: nn.Module, row_loss: RowLoss, autocast: torch.dtype | None) -> None:
        self._module = module
        self._row_loss = row_loss
        self._autocast = autocast

    def add_clipped_sum(self, batch: PhysicalBatch, total: Tensor) -> UnitStats:
        """Adds the batch's unclipped sum to ``total``; norms are not known and reported as 1 for live rows."""
        used = plain_sum(self._module, self._row_loss, batch, total, self._autocast)
        losses = torch.zeros_like(batch.weight)
        losses[batch.weight > 0] = used
        return UnitStats((batch.weight > 0).double(), losses)
