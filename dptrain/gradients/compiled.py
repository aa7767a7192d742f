"""The last pass over a sum on the grid, compiled: rounded, noise added, brought to the gradient's unit, in one go."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from dptrain.compiling import loop


@loop
def _released(source, noise, scale, grad):
    for j in range(len(grad)):
        grad[j] = np.float32((np.rint(np.float64(source[j])) + noise[j]) * scale)


def released(source: Tensor, noise: Tensor, scale: float, grad: Tensor) -> None:
    """grad = (source to the nearest whole number + noise) scale, as torch computes it, bit by bit.

    Args:
        source: (n,) float32 or float64, in grid steps, on the CPU.
        noise: (n,) float64, whole numbers.
        scale: what brings a grid step to the gradient's unit.
        grad: (n,) float32, written; may be ``source``.
    """
    _released(source.numpy(), noise.numpy(), scale, grad.numpy())
