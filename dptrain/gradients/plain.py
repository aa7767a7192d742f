"""The unclipped gradient sum of the non-private baseline. Not an engine: it promises nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dptrain.data.batches import PhysicalBatch
from dptrain.gradients.protocol import RowLoss, trainable


def plain_sum(
    module: nn.Module, row_loss: RowLoss, batch: PhysicalBatch, total: Tensor, autocast: torch.dtype | None
) -> Tensor:
    """Adds the gradient of the sum of weighted row losses to ``total``, with one ordinary backward pass.

    Padding rows are left out of the forward pass, so that they cannot reach a layer that looks at the whole batch.
    The module's ``.grad`` fields are not touched.

    Args:
        module: the model.
        row_loss: (outputs (K, ...), targets (K,)) -> (K,) losses.
        batch: the physical batch, on the model's device.
        total: (D,) float64, in the gradient's own unit.
        autocast: dtype of autocast around the forward pass, or None.

    Returns:
        (K,) float32 loss of each row that is not padding, detached.
    """
    rows = torch.nonzero(batch.weight).flatten()
    if len(rows) == 0:
        return torch.zeros(0, device=batch.inputs.device)
    with torch.autocast(batch.inputs.device.type, dtype=autocast, enabled=autocast is not None):
        outputs = module(batch.inputs[rows])
    losses = row_loss(outputs, batch.targets[rows])
    weighted = (losses * batch.weight[rows].to(losses.dtype)).sum()
    parameters = list(trainable(module).values())
    grads = torch.autograd.grad(weighted, parameters, allow_unused=True, materialize_grads=True)
    total += torch.cat([g.reshape(-1).to(torch.float64) for g in grads])
    return losses.detach().float()
