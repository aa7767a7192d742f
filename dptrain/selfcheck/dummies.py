"""Sentinel parameters, which no record touches, and the dummy units whose gradients on them are known.

Dummy i is the linear function of a row that is zero but at place i, and its loss is that function's value: its gradient
is ``size[i]`` on sentinel i and nothing elsewhere. Even ones are far above the clipping norm and must be clipped to it;
odd ones are half of it and must be left alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dptrain.data.batches import PhysicalBatch

LOUD, QUIET = 20.0, 0.5
"""Norms of the dummies' gradients, in clipping norms: even dummies, odd ones."""
DEVIATIONS = 8
"""Beyond the expected number of drawn dummies that a physical batch of them has room for."""


class Dummies:
    """k dummy units and the k sentinels they move.

    Args:
        count: k, even.
        clipping_norm: C.
        dtype: of the trained parameters.
        device: of the trained parameters.
        rate: q, with which a dummy is drawn; it sets how many rows a physical batch of dummies has.

    Attributes:
        module: what an engine is built on beside the trained model; its one parameter is the block of sentinels. They
            stay at zero: no optimizer is given them.
        size: (k,) float64: norm of each dummy's gradient.
        contribution: (k,) float64: what it must add to a clipped sum on its own sentinel.
    """

    def __init__(
        self, count: int, clipping_norm: float, dtype: torch.dtype, device: torch.device | str, rate: float = 1.0
    ) -> None:
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
        self._room = min(count, math.ceil(count * rate + DEVIATIONS * math.sqrt(count * rate) + DEVIATIONS))

    def batch(self, drawn: Tensor) -> PhysicalBatch:
        """The drawn dummies in one physical batch of a size that q sets, filled up with others of weight zero.

        An engine that forgets the weight of padding is so found out. More dummies than there is room for (never, by
        chance) make a batch of all k: which dummies were drawn is public, shape and time may depend on it.

        Args:
            drawn: (k,) bool: which dummies are in the draw.
        """
        first = torch.argsort(drawn, descending=True, stable=True)
        if int(drawn.sum()) <= self._room:
            first = first[: self._room]
        rows = len(first)
        weight = drawn[first].to(self._rows.device, torch.float32)
        inputs = self._rows[first.to(self._rows.device)]
        return PhysicalBatch(inputs, self._targets[:rows], self._unit[:rows], weight)

    @property
    def block(self) -> nn.Parameter:
        """The sentinels, (1, k)."""
        return self._block


def dummy_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """(R, 1) values, (R,) unused -> (R,): the loss of a dummy is the value itself."""
    return outputs[:, 0] + 0.0 * targets
