"""Training of non-private references: one model alone, or several stacked. Same draws, same steps, same weights.

Stacked models are one set of parameters with a first axis of models (``torch.func.stack_module_state``): what costs on
small models, the calls around each step, is then paid once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from dptrain.config import OptimizerConfig
from dptrain.data.source import Rows
from dptrain.gradients.protocol import RowLoss, trainable
from dptrain.training.optimizers import build_optimizer, build_schedule

ELEMENTWISE = ("sgd", "adam", "adamw", "adagrad", "adadelta", "adamax", "asgd", "nadam", "radam", "rmsprop", "rprop")
"""Optimizers that treat every number by itself: of stacked models they do what they would do of each."""
FUSED = ("sgd", "adam", "adamw", "adagrad")
"""Those that torch can carry out in one pass over memory, which is what they take on many models at once."""
WAYS = ("fused", "foreach", "differentiable", "capturable")
"""Options of an optimizer that say how it computes; where its user set one, it stays as it is."""


@dataclass(frozen=True)
class Recipe:
    """What of a run's recipe a non-private reference needs."""

    rows: Rows
    """The pool as the model takes it, every row a unit of its own where models are stacked."""
    row_loss: RowLoss
    optimizer: OptimizerConfig
    steps: int
    divisor: float
    """What a sum of losses is divided by."""
    rows_at_once: int
    """Most rows that go through one model together."""


Draws = Iterable[Tensor]
"""Each step's rows, as indices into the pool."""


def train_alone(module: nn.Module, recipe: Recipe, draws: Draws) -> dict[str, Tensor]:
    """Trains one module in place on its draws and returns its state."""
    parameters = list(trainable(module).values())
    optimizer = build_optimizer(recipe.optimizer, parameters)
    schedule = build_schedule(recipe.optimizer, optimizer, recipe.steps)
    device = parameters[0].device
    module.train()
    for draw in draws:
        optimizer.zero_grad(set_to_none=False)
        for part in draw.split(recipe.rows_at_once):
            if len(part):
                outputs = module(recipe.rows.inputs[part].to(device))
                losses = recipe.row_loss(outputs, recipe.rows.targets[part].to(device))
                (losses.sum() / recipe.divisor).backward()
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        schedule.step()
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def train_stacked(modules: Sequence[nn.Module], recipe: Recipe, draws: Sequence[Draws]) -> list[dict[str, Tensor]]:
    """Trains several modules together, each on its own draws; the modules themselves stay as they were.

    Args:
        modules: of one architecture, without buffers that training changes.
        recipe: as for ``train_alone``.
        draws: one stream a module, of equally many steps, and of equally many rows in every step.

    Returns:
        The state of each module, as ``state_dict`` names it.

    Raises:
        RuntimeError: torch cannot map the model (control flow that depends on data, an operation without a rule).
    """
    device = next(modules[0].parameters()).device
    stacked, buffers = stack_module_state(list(modules))
    parameters = {name: nn.Parameter(value.detach().clone()) for name, value in stacked.items()}
    optimizer = build_optimizer(_in_one_pass(recipe.optimizer), list(parameters.values()))
    schedule = build_schedule(recipe.optimizer, optimizer, recipe.steps)
    gather = _Gather(recipe.rows.inputs)
    gradients = vmap(grad(_loss_of(modules[0].train(), recipe)), randomness="different")
    for step in zip(*draws, strict=True):
        index = torch.stack(step)
        values = {name: value.detach() for name, value in parameters.items()}
        found = gradients(values, buffers, gather(index).to(device), recipe.rows.targets[index].to(device))
        for name, parameter in parameters.items():
            parameter.grad = found[name]
        optimizer.step()
        schedule.step()
    return [_state_of(modules[k], parameters, buffers, k) for k in range(len(modules))]


class _Gather:
    """Rows by index, always into the same memory: a fresh block a step costs more than the copying."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows
        self._room = rows.new_empty(0)

    def __call__(self, index: Tensor) -> Tensor:  # (K, B) -> (K, B, ...)
        shape = (index.numel(), *self._rows.shape[1:])
        if self._room.shape != shape:
            self._room = self._rows.new_empty(shape)
        torch.index_select(self._rows, 0, index.flatten(), out=self._room)
        return self._room.view(*index.shape, *shape[1:])


def _in_one_pass(config: OptimizerConfig) -> OptimizerConfig:
    chosen = any(config.options.get(way) for way in WAYS)
    return replace(config, options={**config.options, "fused": True}) if config.name in FUSED and not chosen else config


def _loss_of(base: nn.Module, recipe: Recipe) -> Callable[..., Tensor]:
    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        losses = recipe.row_loss(functional_call(base, (parameters, buffers), (inputs,)), targets)
        return losses.sum() / recipe.divisor

    return loss


def _state_of(module: nn.Module, parameters: dict[str, nn.Parameter], buffers: dict[str, Tensor], k: int) -> dict:
    state = {name: value.detach().clone() for name, value in module.state_dict().items()}
    for name, value in (*parameters.items(), *buffers.items()):
        if name in state:
            state[name] = value.detach()[k].clone()
    return state
