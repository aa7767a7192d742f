"""One unit at a time with ordinary autograd: slow, plain, and the reference that every engine is tested against."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dptrain.data.batches import PhysicalBatch
from dptrain.gradients.clip import check_grid, clip_factor
from dptrain.gradients.protocol import ClippingRule, EngineSettings, RowLoss, UnitStats, trainable
from dptrain.registry import engines


class LoopEngine:
    """Clipped sums, unit by unit. Runs in the module's own dtype: make the module float64 for a reference.

    Guarantee: as the ``Engine`` protocol states; each unit is rounded to the grid before it is added. Two units
    never meet in one forward pass.
    """

    name = "loop"
    float_class = "exact"

    def __init__(self, module: nn.Module, row_loss: RowLoss, rule: ClippingRule, settings: EngineSettings) -> None:
        check_grid(rule)
        self._module = module
        self._row_loss = row_loss
        self._rule = rule
        self._autocast = settings.autocast

    def add_clipped_sum(self, batch: PhysicalBatch, total: Tensor) -> UnitStats:
        """See ``Engine``."""
        norms = torch.zeros(batch.num_slots, dtype=torch.float64)
        losses = torch.zeros(batch.num_slots, device=batch.inputs.device)
        live = batch.weight != 0
        for slot in torch.unique(batch.unit[live]).tolist():
            rows = torch.nonzero((batch.unit == slot) & live).flatten()
            gradient = torch.zeros(len(total), dtype=torch.float64, device=total.device)
            for row in rows.tolist():
                loss, values = self._gradient_of_row(batch, row)
                losses[row] = loss
                gradient += values
            norm = gradient.norm()
            norms[slot] = norm
            if math.isfinite(float(norm)):
                gradient *= clip_factor(norm, self._rule, len(total))
                total += gradient if self._rule.grid is None else gradient.round_()
        for row in torch.nonzero(~live).flatten().tolist():
            with torch.no_grad():
                losses[row] = self._forward(batch, row).float()
        return UnitStats(norms.to(total.device), losses)

    def _forward(self, batch: PhysicalBatch, row: int) -> Tensor:
        with torch.autocast(batch.inputs.device.type, dtype=self._autocast, enabled=self._autocast is not None):
            # Cloned buffers: what a forward pass writes into them came from a private row and must not stay.
            buffers = {name: b.clone() for name, b in self._module.named_buffers()}
            outputs = functional_call(self._module, buffers, (batch.inputs[row : row + 1].clone(),))
        return self._row_loss(outputs, batch.targets[row : row + 1])[0]

    def _gradient_of_row(self, batch: PhysicalBatch, row: int) -> tuple[Tensor, Tensor]:
        """The loss of one row and the gradient (D,) float64 of its weighted loss."""
        parameters = list(trainable(self._module).values())
        loss = self._forward(batch, row)
        weighted = loss * batch.weight[row].to(loss.dtype)
        grads = torch.autograd.grad(weighted, parameters, allow_unused=True, materialize_grads=True)
        return loss.detach().float(), torch.cat([g.reshape(-1).to(torch.float64) for g in grads])


@engines.register("loop")
def loop_engine(module: nn.Module, row_loss: RowLoss, rule: ClippingRule, settings: EngineSettings) -> LoopEngine:
    """Any model at all; slow, for checks."""
    return LoopEngine(module, row_loss, rule, settings)
