"""Per-row gradients by Opacus' hooks: fast on the layers it has rules for. The only engine that imports Opacus.

Opacus computes gradients of rows out of one batched pass, so it must be believed that rows do not meet in the
model, and that the leading dimension of every layer's input is the batch (a table of positions looked up with
``arange`` breaks that: its "rows" are positions, and each holds every unit). The first batches are therefore run
twice, once with half of their rows blanked, and a model in which the other half notices is refused.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dptrain.data.batches import PhysicalBatch
from dptrain.errors import ConfigError
from dptrain.gradients.clip import add_clipped_rows, check_grid
from dptrain.gradients.protocol import ClippingRule, EngineSettings, RowLoss, UnitStats, trainable
from dptrain.registry import engines

_TOLERANCE = 1e-3
"""Largest relative change of a row's gradient that counts as arithmetic; a row that leaks moves far more."""


class OpacusEngine:
    """Clipped sums from the ``grad_sample`` of Opacus' hooks (Yousefpour et al. 2021).

    The hooks sit on a copy of the module that shares the caller's weights: the caller's module, its parameters,
    its ``.grad`` fields and its ``state_dict`` stay as they are.

    Guarantee: as the ``Engine`` protocol states; each unit is rounded to the grid before it is added. That a unit
    moves its own slot only is tested on the first batch of two rows or more whose gradients are finite.

    Raises:
        ConfigError: shared weights, a trainable layer with buffers, a layer without per-row gradients, or rows
            that meet in the model.
    """

    name = "opacus"
    float_class = "exact"

    def __init__(self, module: nn.Module, row_loss: RowLoss, rule: ClippingRule, settings: EngineSettings) -> None:
        check_grid(rule)
        _refuse_shared_weights(module)
        self._module = module
        self._twin = _copy_sharing_weights(module)
        self._row_loss = row_loss
        self._rule = rule
        self._autocast = settings.autocast
        self._checked = False
        self._hooks = _hook(self._twin)

    def add_clipped_sum(self, batch: PhysicalBatch, total: Tensor) -> UnitStats:
        """See ``Engine``."""
        self._follow()
        state = None if self._checked else _random_state(batch.inputs.device)
        grads, whole, losses = self._gradients(batch.inputs, batch.targets, batch.weight)
        if state is not None:
            self._check(batch, grads, whole, state)
        norms = add_clipped_rows(grads, batch.unit, batch.weight, self._rule, total)
        return UnitStats(norms, losses.float())

    def _follow(self) -> None:
        """Points the twin at the caller's present weights and modes, and at copies of its buffers."""
        with torch.no_grad():
            for own, given in zip(self._twin.parameters(), self._module.parameters(), strict=True):
                own.data = given.data
            # Clones: what a forward pass writes into a buffer came from private rows and must not reach the caller.
            for own, given in zip(self._twin.buffers(), self._module.buffers(), strict=True):
                own.data = given.data.clone()
        for own, given in zip(self._twin.modules(), self._module.modules(), strict=True):
            own.training = given.training

    def _gradients(
        self, inputs: Tensor, targets: Tensor, weight: Tensor
    ) -> tuple[list[Tensor], Sequence[Tensor], Tensor]:
        """Per-row gradients (R, *shape), the batch's own gradient (*shape), and the losses (R,)."""
        moving = trainable(self._twin)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
            with torch.autocast(inputs.device.type, dtype=self._autocast, enabled=self._autocast is not None):
                outputs = self._twin(inputs)
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
        moved = 0.0
        for name, own, other, sum_of_all in zip(trainable(self._twin), grads, again, whole, strict=True):
            scale = own[live].flatten(1).norm(dim=1).sum()
            moved += float(scale)
            if float((own[live].sum(0) - sum_of_all).norm()) > self._slack * float(scale):
                raise _refusal(f"parameter {name} has gradients that its layer's hook does not see")
            if float((own[kept] - other[kept]).norm()) > self._slack * float(scale):
                raise _refusal(f"rows of a batch meet in parameter {name}")
        self._checked = moved > 0.0

    @property
    def _slack(self) -> float:
        return _TOLERANCE if self._autocast is None else 0.1


def _hook(twin: nn.Module) -> Any:
    from opacus.grad_sample import GradSampleModule

    try:
        return GradSampleModule(twin, loss_reduction="sum")
    except NotImplementedError as error:
        for name, layer in twin.named_modules():
            if list(layer.parameters(recurse=False)) and list(layer.buffers()):
                raise _refusal(f"layer {name or 'model'} ({type(layer).__name__}) has buffers") from error
        raise _refusal(str(error)[:200]) from error


def _taken(name: str, parameter: nn.Parameter, rows: int, reached: bool) -> Tensor:
    """The per-row gradient that the hooks left at a parameter, removed from it; zeros where the loss is not reached."""
    held: Any = parameter
    grad, held.grad_sample = held.grad_sample, None
    if grad is None and not reached:
        return parameter.new_zeros((rows, *parameter.shape))
    if not isinstance(grad, Tensor) or grad.shape != (rows, *parameter.shape):
        raise _refusal(f"Opacus has no gradient of each row for parameter {name}")
    return grad


def _refusal(problem: str) -> ConfigError:
    return ConfigError(
        "clipping.engine", OpacusEngine.name, problem, "set clipping.engine=vmap, which runs rows one by one"
    )


def _refuse_shared_weights(module: nn.Module) -> None:
    first: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if other != name:
            raise _refusal(f"{other} and {name} are one shared parameter, which the hooks cannot tell apart")


def _copy_sharing_weights(module: nn.Module) -> nn.Module:
    """A copy with modules and parameter objects of its own, over the same memory."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.data, requires_grad=p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, memo)


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _restore(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


@engines.register("opacus")
def opacus_engine(module: nn.Module, row_loss: RowLoss, rule: ClippingRule, settings: EngineSettings) -> OpacusEngine:
    """Per-row gradients from Opacus' hooks; models of its supported layers."""
    return OpacusEngine(module, row_loss, rule, settings)
