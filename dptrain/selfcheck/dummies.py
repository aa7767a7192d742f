"""Sentinel parameters, which no record touches, and the dummy units whose gradients on them are known.

Dummy i is the linear function of a row that is zero but at place i, and its loss is that function's value: its gradient
is ``size[i]`` on sentinel i and nothing elsewhere. Even ones are far above the clipping norm and must be clipped to it;
odd ones are half of it and must be left alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dptrain.data.batches import PhysicalBatch

LOUD, QUIET = 20.0, 0.5
"""Norms of the dummies' gradients, in clipping norms: even dummies, odd ones."""


class Dummies:
    """k dummy units and the k sentinels they move.

    Args:
        count: k, even.
        clipping_norm: C.
        dtype: of the trained parameters.
        device: of the trained parameters.

    Attributes:
        module: what an engine is built on beside the trained model; its one parameter is the block of sentinels. They
            stay at zero: no optimizer is given them.
        size: (k,) float64: norm of each dummy's gradient.
        contribution: (k,) float64: what it must add to a clipped sum on its own sentinel.
    """

    def __init__(self, count: int, clipping_norm: float, dtype: torch.dtype, device: torch.device | str) -> None:
        even = torch.arange(count) % 2 == 0
        # A quiet dummy's gradient is a number that bfloat16 has, so that autocast does not change it.
        quiet = torch.tensor(QUIET * clipping_norm).to(torch.bfloat16).double()
        self.size = torch.where(even, torch.tensor(LOUD * clipping_norm).double(), quiet)
        self.contribution = self.size.clamp(max=clipping_norm)
        self.module = nn.Linear(count, 1, bias=False, device=device, dtype=dtype)
        self._block = nn.Parameter(torch.zeros_like(self.module.weight))
        self.module.weight = self._block
        self._rows = torch.diag(self.size).to(device, dtype)
        self._targets = torch.zeros(count, device=device, dtype=dtype)
        self._unit = torch.arange(count, device=device)

    def batch(self, drawn: Tensor) -> PhysicalBatch:
        """All dummies in one physical batch; those not drawn are padding, so that its shape says nothing.

        Args:
            drawn: (k,) bool: which dummies are in the draw.
        """
        weight = drawn.to(self._rows.device, torch.float32)
        return PhysicalBatch(self._rows, self._targets, self._unit, weight)

    @property
    def block(self) -> nn.Parameter:
        """The sentinels, (1, k)."""
        return self._block


def dummy_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """(R, 1) values, (R,) unused -> (R,): the loss of a dummy is the value itself."""
    return outputs[:, 0] + 0.0 * targets
