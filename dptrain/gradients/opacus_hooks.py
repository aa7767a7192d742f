"""Per-row gradients by Opacus' hooks: for models of the layers that it has rules for.

Opacus computes gradients of rows out of one batched pass, so it must be believed that rows do not meet in the
model, and that the leading dimension of every layer's input is the batch (a table of positions looked up with
``arange`` breaks that: its "rows" are positions, and each holds every unit). The first batches are therefore run
twice, once with half of their rows blanked, and a model in which the other half notices is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dptrain.data.batches import PhysicalBatch
from dptrain.gradients.clip import add_clipped_rows, check_grid
from dptrain.gradients.opacus_twin import Twin, hooked, refusal
from dptrain.gradients.protocol import ClippingRule, EngineSettings, RowLoss, UnitStats, trainable
from dptrain.registry import engines

_TOLERANCE = 1e-3
"""Largest relative change of a row's gradient that counts as arithmetic; a row that leaks moves far more."""
_ROUNDING = 0.01
"""Times the tolerance, of the gradient of all parameters together: what arithmetic may change in a parameter whose own
gradient is next to nothing (the bias of an attention's keys has none but rounding errors)."""


class OpacusHooksEngine:
    """Clipped sums from the ``grad_sample`` of Opacus' hooks (Yousefpour et al. 2021).

    The hooks sit on a ``Twin``: the caller's module stays as it is.

    Guarantee: as the ``Engine`` protocol states; each unit is rounded to the grid before it is added. That a unit
    moves its own slot only is tested on the first batch of two rows or more whose gradients are finite.

    Raises:
        ConfigError: shared weights, a trainable layer with buffers, a layer without per-row gradients, or rows
            that meet in the model.
    """

    name = "opacus_hooks"
    float_class = "exact"

    def __init__(self, module: nn.Module, row_loss: RowLoss, rule: ClippingRule, settings: EngineSettings) -> None:
        check_grid(rule)
        self._twin = Twin(module, self.name)
        self._row_loss = row_loss
        self._rule = rule
        self._autocast = settings.autocast
        self._checked = False
        from opacus.grad_sample import GradSampleModule

        self._hooks = hooked(GradSampleModule, self._twin.module, self.name)

    def add_clipped_sum(self, batch: PhysicalBatch, total: Tensor) -> UnitStats:
        """See ``Engine``."""
        self._twin.follow()
        state = None if self._checked else _random_state(batch.inputs.device)
        grads, whole, losses = self._gradients(batch.inputs, batch.targets, batch.weight)
        if state is not None:
            self._check(batch, grads, whole, state)
        norms = add_clipped_rows(grads, batch.unit, batch.weight, self._rule, total)
        return UnitStats(norms, losses.float())

    def _gradients(
        self, inputs: Tensor, targets: Tensor, weight: Tensor
    ) -> tuple[list[Tensor], Sequence[Tensor], Tensor]:
        """Per-row gradients (R, *shape), the batch's own gradient (*shape), and the losses (R,)."""
        moving = trainable(self._twin.module)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
            with torch.autocast(inputs.device.type, dtype=self._autocast, enabled=self._autocast is not None):
                outputs = self._twin.module(inputs)
            losses = self._row_loss(outputs, targets)
            weighted = (losses * weight.to(losses.dtype)).sum()
            with torch.autocast(inputs.device.type, dtype=self._autocast, enabled=self._autocast is not None):
                whole = torch.autograd.grad(weighted, list(moving.values()), allow_unused=True, materialize_grads=True)
        grads = [
            _taken(name, p, len(inputs), bool(w.any())) for (name, p), w in zip(moving.items(), whole, strict=True)
        ]
        return grads, whole, losses.detach()

    def _check(self, batch: PhysicalBatch, grads: list[Tensor], whole: Sequence[Tensor], state: Any) -> None:
        """Compares rows with the batch's gradient, and rows with themselves in other company; once, when possible."""
        live = torch.nonzero(batch.weight).flatten()
        if len(live) < 2 or not all(bool(g[live].isfinite().all()) for g in grads):
            return
        kept, blanked = live[::2], live[1::2]
        inputs, weight = batch.inputs.clone(), batch.weight.clone()
        inputs[blanked] = 0
        weight[blanked] = 0
        with torch.random.fork_rng(devices=[]):
            _restore(batch.inputs.device, state)
            again, _, _ = self._gradients(inputs, batch.targets, weight)
        names = list(trainable(self._twin.module))
        scales = [float(own[live].flatten(1).norm(dim=1).sum()) for own in grads]
        rounding = _ROUNDING * sum(scale**2 for scale in scales) ** 0.5
        for name, own, other, sum_of_all, scale in zip(names, grads, again, whole, scales, strict=True):
            allowed = self._slack * (scale + rounding)
            if float((own[live].sum(0) - sum_of_all).norm()) > allowed:
                raise refusal(self.name, f"parameter {name} has gradients that its layer's hook does not see")
            if float((own[kept] - other[kept]).norm()) > allowed:
                raise refusal(self.name, f"rows of a batch meet in parameter {name}")
        self._checked = rounding > 0.0

    @property
    def _slack(self) -> float:
        return _TOLERANCE if self._autocast is None else 0.1


def _taken(name: str, parameter: nn.Parameter, rows: int, reached: bool) -> Tensor:
    """The per-row gradient that the hooks left at a parameter, removed from it; zeros where the loss is not reached."""
    held: Any = parameter
    grad, held.grad_sample = held.grad_sample, None
    if grad is None and not reached:
        return parameter.new_zeros((rows, *parameter.shape))
    if not isinstance(grad, Tensor) or grad.shape != (rows, *parameter.shape):
        raise refusal(OpacusHooksEngine.name, f"Opacus has no gradient of each row for parameter {name}")
    return grad


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _restore(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


@engines.register("opacus_hooks")
def opacus_hooks_engine(
    module: nn.Module, row_loss: RowLoss, rule: ClippingRule, settings: EngineSettings
) -> OpacusHooksEngine:
    """Per-row gradients from Opacus' hooks; models of its supported layers."""
    return OpacusHooksEngine(module, row_loss, rule, settings)
