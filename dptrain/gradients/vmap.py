"""Per-row gradients by ``torch.func``: any model that vmap can follow.

A row goes through the model alone, as a batch of one, so nothing in the model can mix rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from dptrain.data.batches import PhysicalBatch
from dptrain.gradients.clip import add_clipped_rows, check_grid
from dptrain.gradients.protocol import ClippingRule, EngineSettings, RowLoss, UnitStats, trainable
from dptrain.gradients.refusal import vmap_refusal
from dptrain.registry import engines


class VmapEngine:
    """Clipped sums from per-row gradients of ``vmap(grad(loss))``.

    Guarantee: as the ``Engine`` protocol states; each unit is rounded to the grid before it is added.

    Args:
        module: the model, in whatever mode (train or eval) it should run; its parameters are read at every call.
        row_loss: (outputs (1, ...), targets (1,)) -> (1,) loss.
        rule: clipping norm and grid.
        settings: only ``autocast`` is heeded.
    """

    name = "vmap"
    float_class = "exact"

    def __init__(self, module: nn.Module, row_loss: RowLoss, rule: ClippingRule, settings: EngineSettings) -> None:
        check_grid(rule)
        self._module = module
        self._row_loss = row_loss
        self._rule = rule
        self._autocast = settings.autocast
        self._per_row = vmap(
            grad(self._loss_of_row, has_aux=True), in_dims=(None, None, 0, 0, 0), randomness="different"
        )

    def add_clipped_sum(self, batch: PhysicalBatch, total: Tensor) -> UnitStats:
        """See ``Engine``. Raises ConfigError where the model cannot be followed by vmap."""
        moving = {name: p.detach() for name, p in trainable(self._module).items()}
        fixed = {name: p.detach() for name, p in self._module.named_parameters() if not p.requires_grad}
        fixed |= {name: b.clone() for name, b in self._module.named_buffers()}
        try:
            grads, losses = self._per_row(moving, fixed, batch.inputs, batch.targets, batch.weight)
        except RuntimeError as error:
            refusal = vmap_refusal(error, self.name, self._autocast)
            if refusal is None:
                raise
            raise refusal from error
        norms = add_clipped_rows([grads[name] for name in moving], batch.unit, batch.weight, self._rule, total)
        return UnitStats(norms, losses.float())

    def _loss_of_row(
        self, moving: dict[str, Tensor], fixed: dict[str, Tensor], row: Tensor, target: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(row.device.type, dtype=self._autocast, enabled=self._autocast is not None):
            outputs = functional_call(self._module, (moving, fixed), (row[None],), tie_weights=True)
        loss = self._row_loss(outputs, target[None]).squeeze(0)
        return loss * weight.to(loss.dtype), loss.detach()


@engines.register("vmap")
def vmap_engine(module: nn.Module, row_loss: RowLoss, rule: ClippingRule, settings: EngineSettings) -> VmapEngine:
    """Any model; memory of one gradient a row."""
    return VmapEngine(module, row_loss, rule, settings)
