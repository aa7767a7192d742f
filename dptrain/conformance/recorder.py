"""A run that is watched: its draws, its noise, the order of events, and what the optimizer gets.

Nothing of the loop is replaced. Its parts are told to report, and the exact clipped sum of every draw is recomputed
beside it, from the draw and the rows, at the parameters that the model has then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dptrain.conformance.observe import Told, tell_noise
from dptrain.conformance.reference import exact
from dptrain.conformance.stand import Stand
from dptrain.data.batches import PhysicalBatch
from dptrain.training.loop import Trainer


@dataclass
class Watched:
    """One step, from outside."""

    draw: Tensor
    exact: Tensor
    """(D,) float64: the draw's clipped sum by recomputation (``reference``), each of its units once."""
    begins_at: Tensor
    """(D,) parameters when it was drawn."""
    fixed: Tensor
    """What no step may move when it was drawn: frozen parameters and buffers."""
    trains: bool
    """Whether the model was in training mode then."""
    events: list[str] = field(default_factory=list)
    noise: list[Tensor] = field(default_factory=list)
    """(D,) float64 vectors in the gradient's unit."""
    released: list[Tensor] = field(default_factory=list)
    """(D,) float64: gradients that the optimizer was called with, times the divisor."""
    rates: list[float] = field(default_factory=list)
    """Learning rates of the optimizer's groups when it was called."""
    ends_at: Tensor | None = None
    """(D,) parameters after the optimizer."""
    fixed_after: Tensor | None = None
    """As ``fixed``, after the optimizer."""


def watch(
    stand: Stand, trainer: Trainer, rows: PhysicalBatch, draw: Callable[[int], Tensor] | None = None
) -> list[Watched]:
    """Runs the trainer to its end and returns what its steps did.

    Args:
        stand: the plan's C, and the loss.
        trainer: to be run.
        rows: every unit it may draw, slot = unit.
        draw: step -> units, instead of the trainer's own sampler.
    """
    steps: list[Watched] = []
    loose: list[str] = []
    drawn = draw or trainer.draw

    def on_draw(step: int, units: Tensor) -> None:
        found = exact(stand, rows, torch.unique(units), stand.clip, trainer.module)
        steps.append(
            Watched(units.clone(), found.clipped_sum.cpu(), _flat(trainer), _fixed(trainer), trainer.module.training)
        )
        steps[-1].events.append("draw")

    def tell(event: str) -> None:
        (steps[-1].events if steps else loose).append(event)

    def on_noise(step: int, vector: Tensor) -> None:
        tell("noise")
        steps[-1].noise.append(vector * unit)

    def before(*_: Any) -> None:
        tell("optimizer")
        steps[-1].rates = [float(group["lr"]) for group in trainer.optimizer.param_groups]
        grads = [p.grad if p.grad is not None else torch.full_like(p, float("nan")) for p in trainer.parameters]
        flat = torch.cat([g.detach().reshape(-1).double() for g in grads]).cpu()
        steps[-1].released.append(flat * stand.plan.expected_batch_size)
        if not torch.equal(_flat(trainer), steps[-1].begins_at):
            tell("parameters moved")

    def after(*_: Any) -> None:
        steps[-1].ends_at, steps[-1].fixed_after = _flat(trainer), _fixed(trainer)

    assert trainer.noise is not None
    unit = 1.0 if trainer.grid is None else trainer.grid
    tell_noise(trainer.noise, on_noise)
    watched = replace(trainer, draw=Told(drawn, on_draw), intend=lambda step: tell(f"intent {step}"))
    hooks = [trainer.optimizer.register_step_pre_hook(before), trainer.optimizer.register_step_post_hook(after)]
    try:
        watched.run(lambda *_: None)
    finally:
        for hook in hooks:
            hook.remove()
    return steps


def _flat(trainer: Trainer) -> Tensor:
    return torch.cat([p.detach().reshape(-1).cpu() for p in trainer.parameters])


def _fixed(trainer: Trainer) -> Tensor:
    frozen = [p for p in trainer.module.parameters() if not p.requires_grad]
    parts = [t.detach().reshape(-1).double().cpu() for t in [*frozen, *trainer.module.buffers()]]
    return torch.cat(parts) if parts else torch.empty(0)
