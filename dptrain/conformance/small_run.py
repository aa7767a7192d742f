"""A run of many steps on a model so small that its gradients are written down here: no engine, no autograd.

Mistakes that come every sixteenth or hundredth step, or behind a step that a run was stopped at, need many steps; those
in optimizer states and averages need none of the user's model. A network of one hidden layer has per-unit gradients in
closed form, so that every step's clipped sum is known exactly, in microseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dptrain.config import OptimizerConfig
from dptrain.conformance.observe import Opened, Told, addresses, tell_noise
from dptrain.conformance.post_processing import Apart
from dptrain.conformance.stand import ALPHA, RATE, Stand
from dptrain.data.source import Rows
from dptrain.keystream import Keystream
from dptrain.noise.ahead import NoiseAhead
from dptrain.training.assemble import build_trainer
from dptrain.training.loop import Trainer

WIDTH, HIDDEN, CLASSES, UNITS = 12, 8, 5, 40
SCALE = 0.6
"""Of the loss, in clipping norms: about as many gradients are then longer than C as are shorter."""


@dataclass
class Seen:
    """One step of the small run, from outside. Vectors are (D,) float64, in the gradient's unit times the divisor."""

    draw: Tensor
    exact: Tensor
    norms: Tensor
    """(UNITS,) float64: every unit's norm at the step, drawn or not."""
    events: list[str]
    noise: list[Tensor] = field(default_factory=list)
    released: list[Tensor] = field(default_factory=list)
    opened: list[Opened] = field(default_factory=list)
    differs: str | None = None
    """What of parameters, optimizer and average is not what the releases make of them (``Apart.differs``)."""


@dataclass
class SmallRun:
    """What a small run did.

    Attributes:
        steps: those that were taken, by draws.
        loose: addresses that were opened while the run was put together.
        wrong_end: what of the released model is not the average (or the parameters) at the end.
        planned: number of steps.
        std: planned deviation of the noise, in the unit of a sum.
        clip: C.
    """

    steps: list[Seen]
    loose: list[Opened]
    wrong_end: str | None
    planned: int
    std: float
    clip: float


def small_run(
    stand: Stand,
    planned: int,
    optimizer: OptimizerConfig,
    size: int = 16,
    selfcheck: bool = False,
    ahead: bool = False,
    q: float = RATE,
) -> SmallRun:
    """Takes the steps, and recomputes each.

    Args:
        stand: engine, clipping norm, noise and slack.
        planned: number of steps.
        optimizer: of the run; another model than the user's makes no difference to it.
        size: rows of a physical batch.
        selfcheck: whether the run checks itself.
        ahead: whether noise is drawn by another thread while sums are computed, as in a run of many parameters.
        q: sampling rate.
    """
    rows, module = made_up(stand), network(stand)
    loss = loss_of(stand.clip)
    config = replace(
        stand.config,
        execution=replace(
            stand.config.execution,
            physical_batch_size=size,
            device="cpu",
            dtype="float64" if stand.config.execution.dtype == "float64" else "float32",
        ),
        optimizer=optimizer,
        selfcheck=replace(stand.config.selfcheck, enabled=selfcheck, alpha=min(stand.config.selfcheck.alpha, ALPHA)),
    )
    batch = q * UNITS
    mechanism = replace(stand.mechanism, sampling_rate=q, divisor=batch, steps=planned)
    plan = replace(
        stand.plan,
        mechanism=mechanism,
        steps=planned,
        sampling_rate=q,
        expected_batch_size=batch,
        public_size=UNITS,
        max_rows_per_unit=int(torch.bincount(rows.unit_id).max()),
    )
    with addresses() as opened:
        trainer = build_trainer(config, plan, module, rows, loss, Keystream())
        if ahead and trainer.noise is not None:
            trainer = replace(trainer, noise=NoiseAhead(trainer.noise))
        return _watched(stand, trainer, rows, optimizer, opened)


def _watched(stand: Stand, trainer: Trainer, rows: Rows, optimizer: OptimizerConfig, opened: list[Opened]) -> SmallRun:
    steps, loose = list[Seen](), list[Opened](opened)
    count, plan = sum(p.numel() for p in trainer.parameters), trainer.plan
    apart = Apart(optimizer, trainer.parameters, plan.steps)
    unit, place = 1.0 if trainer.grid is None else trainer.grid, [len(opened)]

    def since() -> list[Opened]:
        end = len(opened)  # once: a thread that draws noise may add to it meanwhile
        mine = opened[place[0] : end]
        place[0] = end
        return mine

    def at_once(event: str) -> None:
        if steps:
            steps[-1].opened += since()
            steps[-1].events.append(event)

    def on_draw(step: int, units: Tensor) -> None:
        mine = since()
        units = units[units < UNITS].clone()  # dummies of a self-check lie behind
        gradients = unit_gradients(stand.clip, trainer.module, rows)
        exact = clipped_sum(stand.clip, gradients, units)
        steps.append(Seen(units, exact, gradients.norm(dim=1), ["draw"], opened=mine))

    def on_noise(step: int, vector: Tensor) -> None:
        at_once("noise")
        steps[-1].noise.append(vector[:count] * unit)

    def before(*_: object) -> None:
        at_once("optimizer")
        grads = [p.grad.detach().reshape(-1) if p.grad is not None else p.detach() * 0 for p in trainer.parameters]
        steps[-1].released.append(torch.cat(grads).double() * plan.expected_batch_size)
        apart.take([g.view(p.shape) for g, p in zip(grads, trainer.parameters, strict=True)])

    def on_step(done: int, *_: object) -> None:
        at_once("end")
        steps[-1].differs = apart.differs(trainer)

    assert trainer.noise is not None
    tell_noise(trainer.noise, on_noise)
    trainer = replace(trainer, draw=Told(trainer.draw, on_draw), intend=lambda step: at_once(f"intent {step}"))
    hook = trainer.optimizer.register_step_pre_hook(before)
    try:
        trainer.run(on_step)
    finally:
        hook.remove()
    return SmallRun(steps, loose, _end(trainer, apart), plan.steps, stand.mechanism.noise_std, stand.clip)


def _end(trainer: Trainer, apart: Apart) -> str | None:
    """What is released in the end: the average, where there is one."""
    wanted = apart.parameters if trainer.average is None else apart.mean
    if trainer.average is not None:
        trainer.average.settle()
    for place, (own, theirs) in enumerate(zip(wanted, trainer.parameters, strict=True)):
        if not torch.allclose(own.double(), theirs.double(), rtol=1e-4, atol=1e-6):
            return f"parameter {place} of the released model is not what the releases make of it"
    return None


def made_up(stand: Stand) -> Rows:
    """Normal rows of 40 units, of one or two rows each where the engine takes units of several."""
    generator = torch.Generator().manual_seed(11)
    most = 1 if stand.config.clipping.engine == "opacus_ghost" else 2
    unit = torch.repeat_interleave(torch.arange(UNITS), torch.tensor([1 + u % most for u in range(UNITS)]))
    dtype = torch.float64 if stand.config.execution.dtype == "float64" else torch.float32
    inputs = torch.randn(len(unit), WIDTH, generator=generator).to(dtype)
    return Rows(inputs, torch.arange(len(unit)) % CLASSES, unit)


def network(stand: Stand) -> nn.Module:
    """One hidden layer, from a fixed seed."""
    with torch.random.fork_rng([]):
        torch.manual_seed(12)
        module = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES))
    return module.double() if stand.config.execution.dtype == "float64" else module


def loss_of(clip: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross entropy times what brings most gradients' norms to both sides of C."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none") * (SCALE * clip)

    return loss


def unit_gradients(clip: float, module: nn.Module, rows: Rows) -> Tensor:
    """(UNITS, D) float64: each unit's gradient, from the chain rule as it stands in textbooks."""
    w, b, v, c = (p.detach().double() for p in module.parameters())
    x = rows.inputs.double()
    hidden = torch.tanh(x @ w.T + b)
    outer = torch.softmax(hidden @ v.T + c, 1) - F.one_hot(rows.targets, CLASSES).double()  # (R, K)
    inner = (outer @ v) * (1.0 - hidden.square())  # (R, H)
    parts = (inner[:, :, None] * x[:, None, :], inner, outer[:, :, None] * hidden[:, None, :], outer)
    of_rows = torch.cat([p.flatten(1) for p in parts], 1) * (SCALE * clip)
    sizes = torch.bincount(rows.unit_id).double()
    of_units = torch.zeros(len(sizes), of_rows.shape[1], dtype=torch.float64)
    return of_units.index_add_(0, rows.unit_id, of_rows / sizes[rows.unit_id, None])


def clipped_sum(clip: float, gradients: Tensor, draw: Tensor) -> Tensor:
    """(D,) float64: the clipped sum of the draw's units, each once."""
    norms = gradients.norm(dim=1, keepdim=True)
    return (gradients * (clip / norms.clamp(min=clip)))[torch.unique(draw)].sum(0)
