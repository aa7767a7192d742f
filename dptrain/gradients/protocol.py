"""What every clipping engine is: a thing that adds the clipped sum of one physical batch to a total."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from dptrain.data.batches import PhysicalBatch

RowLoss = Callable[[Tensor, Tensor], Tensor]
"""(outputs (R, ...), targets (R,)) -> one loss a row (R,), unreduced."""


@dataclass(frozen=True)
class ClippingRule:
    """How one unit's gradient becomes its contribution.

    Attributes:
        clipping_norm: largest norm C of a contribution.
        grid: step of the integer grid on which every contribution is rounded before it is added
            (``secure`` noise), or None to add unrounded float64 values (``fast``).
    """

    clipping_norm: float
    grid: float | None


@dataclass(frozen=True)
class EngineSettings:
    """How an engine may compute. Performance settings: they change speed and memory, never the guarantee.

    Attributes:
        autocast: dtype of autocast around the forward pass, or None.
        memory_limit: bytes that an engine may hold for the sum between norms and sum, where it has a choice; None
            for no limit.
        pass_limit: bytes that a pass through the model and the sum may take beside the model and its rows, where an
            engine can take a physical batch in several passes; 0: about what plain training of the batch takes; None:
            no limit.
        compiled: whether an engine may try loops compiled by numba, which must be installed.
        checkpoint: patterns of names of modules whose activations are computed again in the backward pass; of the
            engine bookkeeping alone.
    """

    autocast: torch.dtype | None = None
    memory_limit: int | None = None
    pass_limit: int | None = None
    compiled: bool = False
    checkpoint: tuple[str, ...] = ()


@dataclass(frozen=True)
class UnitStats:
    """What an engine saw of one physical batch. Internal tier: never leaves the building."""

    norms: Tensor  # (R,) float64: norm of each slot's gradient before clipping; 0 for empty slots
    losses: Tensor  # (R,) float32: loss of each row, detached; padding rows included


class Engine(Protocol):
    """One way to compute clipped sums.

    Guarantee: each slot adds at most ``clipping_norm`` (plus half a grid step a coordinate) in norm, whatever
    its rows; a slot whose gradient is not finite adds exactly nothing; padding adds exactly nothing.
    """

    name: str
    float_class: str
    """``exact``: each unit rounded to the grid before it is added. ``measured``: sums rounded afterwards."""

    def add_clipped_sum(self, batch: PhysicalBatch, total: Tensor) -> UnitStats:
        """Adds the batch's clipped sum to ``total`` in place.

        Args:
            batch: the physical batch, on the model's device.
            total: (D,) float64, D = number of trainable parameters in ``named_parameters`` order, flattened;
                in units of the grid (whole numbers) where the rule has one, else in the gradient's own unit.
        """
        ...


class EngineBuilder(Protocol):
    """Signature that every function in ``registry.engines`` has."""

    def __call__(
        self, module: nn.Module, row_loss: RowLoss, rule: ClippingRule, settings: EngineSettings
    ) -> Engine: ...


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a step moves, by name, in the order of the flat vector; tied ones once."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
