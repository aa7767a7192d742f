"""The last pass over a sum, compiled: rounded where there is a grid, noise added, brought to the gradient's unit."""

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


@loop
def _added(source, noise, scale, grad):
    for j in range(len(grad)):
        grad[j] = (source[j] + noise[j]) * scale


def added(source: Tensor, noise: Tensor, scale: float, grad: Tensor) -> None:
    """grad = (source + noise) scale without a grid, all (n,) float32 on the CPU; may be in place.

    As torch computes it, bit by bit: no product is added to anything, so that nothing rounds once in place of twice.
    """
    _added(source.numpy(), noise.numpy(), np.float32(scale), grad.numpy())
