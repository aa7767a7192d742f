"""Gradients of chosen units computed again: alone, in float64, by ordinary autograd.

Shares no code with the engines, so that a mistake of theirs is not repeated here: rows go through the model one at a
time, norms are taken of the flat gradient itself, and clipping is one division.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dptrain.data.batches import PhysicalBatch
from dptrain.gradients.protocol import RowLoss


@dataclass(frozen=True)
class Recomputed:
    """What units contribute, by float64 autograd. Computed from private rows: internal tier."""

    units: Tensor
    """(U,) int64 slots of the batch, as asked for."""
    norms: Tensor
    """(U,) float64 norm of each unit's gradient before clipping; infinite or NaN where it is."""
    clipped_sum: Tensor
    """(D,) float64: sum of their gradients, each clipped to C; those that are not finite add nothing."""


def unit_gradients(
    module: nn.Module,
    row_loss: RowLoss,
    batch: PhysicalBatch,
    units: Tensor,
    as_trained: bool = False,
    autocast: torch.dtype | None = None,
) -> Iterator[Tensor]:
    """The gradient (D,) float64 of each unit's weighted loss, one unit at a time, in ``named_parameters`` order.

    The module's parameters, buffers, ``.grad`` fields and mode, and the random generators, stay as they are: it runs
    on float64 copies of its tensors. A module that keeps state elsewhere, in attributes say, is not rolled back.
    With ``as_trained`` it runs on copies in their own dtype, as a plain step would: how far that is from float64 is
    what rounding makes of a unit.

    Args:
        module: the model; its mode (train or eval) is kept.
        row_loss: (outputs (1, ...), targets (1,)) -> (1,) loss.
        batch: one physical batch, on the model's device.
        units: (U,) slots; one without a row of weight above 0 has a zero gradient.
        as_trained: in the module's own dtype instead of float64.
        autocast: dtype of autocast around the forward pass then; None: without.
    """
    copied = _copied if as_trained else _wide
    moving = [name for name, p in module.named_parameters() if p.requires_grad]
    # named_parameters gives tied ones once; functional_call ties the copies again.
    state = {name: copied(t) for name, t in [*module.named_parameters(), *module.named_buffers()]}
    leaves = [state[name].requires_grad_() for name in moving]
    for unit in units.tolist():
        gradient = torch.zeros(sum(p.numel() for p in leaves), dtype=torch.float64, device=batch.weight.device)
        rows = torch.nonzero((batch.unit == unit) & (batch.weight != 0)).flatten().tolist()
        for row in rows:
            # Buffers may be written to by a forward pass: every row begins with the same ones.
            fresh = {name: t if t.requires_grad else t.clone() for name, t in state.items()}
            target = batch.targets[row : row + 1]
            kind = batch.inputs.device.type
            with _by_itself(batch.inputs.device):
                with torch.autocast(kind, dtype=autocast, enabled=as_trained and autocast is not None):
                    outputs = functional_call(module, fresh, (copied(batch.inputs[row : row + 1]),))
                with torch.autocast(kind, enabled=False):
                    wide = target.is_floating_point() and not as_trained
                    loss = row_loss(outputs, target.double() if wide else target)
                weighted = loss.double().sum() * float(batch.weight[row])
                parts = torch.autograd.grad(weighted, leaves, allow_unused=True, materialize_grads=True)
            gradient += torch.cat([part.reshape(-1) for part in parts])
        yield gradient


def recompute(
    module: nn.Module, row_loss: RowLoss, batch: PhysicalBatch, units: Tensor, clipping_norm: float
) -> Recomputed:
    """Norms and clipped sum of chosen units; memory of one unit at a time.

    Args:
        module, row_loss, batch, units: as ``unit_gradients``.
        clipping_norm: C, above 0.
    """
    size = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return clipped(unit_gradients(module, row_loss, batch, units), units, clipping_norm, size, batch.weight.device)


def clipped(
    gradients: Iterator[Tensor], units: Tensor, clipping_norm: float, size: int, device: torch.device
) -> Recomputed:
    """Norms and clipped sum of gradients (D,) float64, one a unit.

    Args:
        gradients: of the units, in their order.
        units: (U,) slots.
        clipping_norm: C, above 0.
        size: D.
        device: of the gradients.
    """
    total = torch.zeros(size, dtype=torch.float64, device=device)
    norms: list[float] = []
    for gradient in gradients:
        norm = float(gradient.norm())
        norms.append(norm)
        if math.isfinite(norm):
            total += gradient * min(1.0, clipping_norm / norm) if norm > 0 else gradient
    return Recomputed(units, torch.tensor(norms, dtype=torch.float64), total)


def _copied(tensor: Tensor) -> Tensor:
    """A detached copy."""
    return tensor.detach().clone()


def _wide(tensor: Tensor) -> Tensor:
    """A detached copy, in float64 where it holds real numbers."""
    copy = tensor.detach().clone()
    return copy.double() if copy.is_floating_point() else copy


@contextmanager
def _by_itself(device: torch.device) -> Iterator[None]:
    """Gradients on, and random generators as they were afterwards."""
    devices: Sequence[torch.device] = [device] if device.type == "cuda" else []
    with torch.enable_grad(), torch.random.fork_rng(devices):
        yield
