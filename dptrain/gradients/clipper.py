"""The engine for training loops of one's own, in plain PyTorch or with Opacus' optimizer and accountant."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dptrain.data.batches import PhysicalBatch
from dptrain.errors import ConfigError
from dptrain.gradients.bookkeeping.engine import BookkeepingEngine
from dptrain.gradients.protocol import ClippingRule, EngineSettings, trainable


@dataclass(frozen=True)
class Clipped:
    """The clipped sum of one batch. All of it is computed from private rows: nothing may be shown before noise."""

    sums: dict[str, Tensor]  # trainable parameter -> sum over units of clipped gradients, in its shape and dtype
    norms: Tensor  # (U,) float64: each unit's norm before clipping, units in rising order of their label
    losses: Tensor  # (R,) float32: each row's loss


class Clipper:
    """Per-unit clipped gradients of your own module, at nearly the cost of a plain backward pass.

        clip = dptrain.Clipper(module, torch.nn.CrossEntropyLoss(), max_grad_norm=1.0)
        clip.backward(inputs, targets)      # for loss(module(inputs), targets).backward(): .grad holds the clipped sum

    Keep it from batch to batch: on the first one it times several ways of computing each layer's part and remembers
    the quickest. It reads the module's parameters and mode at every call and leaves no hooks behind.

    Guarantee: in one call, a unit adds to the sums a vector of norm at most ``max_grad_norm`` (1 + r), over all
    trainable parameters together, where r is rounding: measured below 1e-4 on adversarial rows
    (``docs/results/engine_exactness.md``), not proved. Clip a thousandth below the sensitivity that your noise is for,
    and it is covered. A unit whose gradient is not finite adds exactly nothing. Rows go through the module one by one,
    so they cannot meet in it. It does **not** promise privacy: random draws, noise, a divisor that is a public
    constant, the accounting, and a module that draws no random numbers of its own (dropout) are yours to see to;
    ``dptrain train`` does. Sums are float32 and not on a grid, so that noise added in floating point can be looked
    through in its last digits. Norms and losses are private.

    Args:
        module: any module that ``torch.func.vmap`` can follow, without Opacus' wrapper or hooks.
        loss: (outputs (1, ...), targets (1, ...)) -> one number; called for one row at a time, so that one that
            averages over its batch does as well as one that does not.
        max_grad_norm: largest norm of a unit's contribution, above 0.
        memory_limit: MiB that a call may take beside the module and the batch, which then goes through in runs of whole
            units; 0: about what a plain backward pass takes; None: all rows at once.
        autocast: dtype of autocast around the forward pass, or None. Do not call under ``torch.autocast``.
        checkpoint: patterns of names of modules (``blocks.*``) whose activations are computed again in the backward
            pass, which is then taken twice: for units that do not fit at all.
        compiled: whether loops compiled by numba may be tried on a CPU (extra ``fast``; convolutions and attention
            gain most). They are compiled once a machine, some seconds, and loaded by every process, half a second.

    Raises:
        ConfigError: the norm is not a number above 0, nothing is trainable, hooks of Opacus are on the module, a
            pattern names nothing, or numba is asked for and not there; when called: the module mixes rows or cannot be
            followed, or the numbers of rows differ.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        max_grad_norm: float,
        *,
        memory_limit: int | None = None,
        autocast: torch.dtype | None = None,
        checkpoint: Sequence[str] = (),
        compiled: bool = False,
    ) -> None:
        if not (0.0 < max_grad_norm < math.inf):
            raise ConfigError("max_grad_norm", max_grad_norm, "is not a finite number above 0", "choose one, such as 1")
        if not trainable(module):
            raise ConfigError("module", type(module).__name__, "has nothing to train", "set requires_grad")
        if type(module).__module__.startswith("opacus.") or hasattr(module, "autograd_grad_sample_hooks"):
            raise ConfigError(
                "module",
                type(module).__name__,
                "carries Opacus' hooks",
                "give the module as it was before make_private",
            )
        if compiled and importlib.util.find_spec("numba") is None:
            raise ConfigError(
                "compiled", True, "numba is not installed", "pip install 'dptrain[fast]', or leave it out"
            )
        self._module = module
        limit = None if memory_limit is None else memory_limit << 20
        settings = EngineSettings(autocast, pass_limit=limit, compiled=compiled, checkpoint=tuple(checkpoint))
        self._engine = BookkeepingEngine(module, loss, ClippingRule(float(max_grad_norm), None), settings)

    def __call__(self, inputs: Tensor, targets: Tensor, unit: Tensor | None = None) -> Clipped:
        """The clipped sum of a batch; changes nothing.

        Args:
            inputs: (R, ...), R may be 0.
            targets: (R, ...).
            unit: (R,) integer label of the person that each row belongs to: their rows count as one, with the gradient
                of their mean loss. None: every row is its own.
        """
        moving, rows = trainable(self._module), len(inputs)
        if len(targets) != rows or (unit is not None and len(unit) != rows):
            raise ConfigError("targets", len(targets), f"rows, where inputs have {rows}", "give as many of each")
        device = next(iter(moving.values())).device
        if not rows:
            empty = torch.zeros(0, dtype=torch.float64, device=device)
            return Clipped({name: torch.zeros_like(p) for name, p in moving.items()}, empty, empty.float())
        labels, slot = torch.unique(torch.arange(rows) if unit is None else unit, return_inverse=True)
        slot = slot.to(device)
        weight = 1.0 / torch.bincount(slot)[slot].float()
        parts, stats = self._engine.clipped_parts(PhysicalBatch(inputs, targets, slot, weight))
        sums = {name: part.to(p.dtype) for (name, p), part in zip(moving.items(), parts, strict=True)}
        return Clipped(sums, stats.norms[: len(labels)], stats.losses)

    def backward(self, inputs: Tensor, targets: Tensor, unit: Tensor | None = None) -> Clipped:
        """The same, added to every trainable parameter's ``.grad``, as a backward pass of the loss would."""
        clipped = self(inputs, targets, unit)
        for name, parameter in trainable(self._module).items():
            held = parameter.grad
            parameter.grad = clipped.sums[name] if held is None else held + clipped.sums[name]
        return clipped

    @property
    def without_rule(self) -> dict[str, str]:
        """Functions that have no rule, as of the latest batch -> a parameter that they read, copied for every row."""
        return dict(self._engine.without_rule)
