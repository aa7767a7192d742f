"""Non-private references of plain chains (linear layers and activations) trained by compiled loops, model after model.

What costs on small models is everything but their two large products: calls, copies of rows, passes over weights. Here
a model takes many steps within one call (``reference_loops``, numba), on the same draws and by the same SGD.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor, nn

from dptrain.training.losses import cross_entropy
from dptrain.training.optimizers import rate_factor
from dptrain.training.reference_draws import ReferenceDraws
from dptrain.training.reference_plain import WAYS, Recipe

ACTIVATIONS: dict[type, int] = {nn.ReLU: 1, nn.Tanh: 2, nn.Sigmoid: 3}
"""As ``reference_loops`` numbers them; 0 is none."""
ROWS_A_CALL = 4096
"""Rows of all draws of one call: some tenths of a second, so that Ctrl-C is heard."""


def never_compiled(module: nn.Module, recipe: Recipe) -> str | None:
    """Why this model cannot be trained by ``train_compiled``, or None."""
    if find_spec("numba") is None:
        return "numba is not installed"
    chain = _chain(module, recipe.rows.inputs)
    if chain is None:
        return "not a chain of linear layers"
    options = {name: value for name, value in recipe.optimizer.options.items() if name not in WAYS}
    if recipe.optimizer.name != "sgd" or options.keys() - {"momentum", "weight_decay", "nesterov"}:
        return "the optimizer is another than SGD with momentum"
    layers, _ = chain
    numbers = [recipe.rows.inputs, *(value for layer in layers for value in (layer.weight, layer.bias))]
    if any(value.dtype != torch.float32 or value.device.type != "cpu" for value in numbers):
        return "not float32 on a CPU"
    targets = recipe.rows.targets
    if recipe.row_loss is not cross_entropy or targets.ndim != 1 or targets.dtype != torch.int64:
        return "the loss is another than cross entropy"
    if len(targets) and (int(targets.min()) < 0 or int(targets.max()) >= layers[-1].out_features):
        return "a class is none of the model's"
    return None


def train_compiled(
    modules: Sequence[nn.Module], recipe: Recipe, draws: Sequence[ReferenceDraws]
) -> list[dict[str, Tensor]]:
    """Trains modules one after the other, each on its own draws; the modules themselves stay as they were.

    Args:
        modules: such that ``never_compiled`` says None.
        recipe: as for ``train_alone``.
        draws: one stream a module, of equally many rows in every step.

    Returns:
        The state of each module, as ``state_dict`` names it.
    """
    return [_train(module, recipe, own) for module, own in zip(modules, draws, strict=True)]


def _train(module: nn.Module, recipe: Recipe, draws: ReferenceDraws) -> dict[str, Tensor]:
    from dptrain.training.reference_loops import steps

    chain = _chain(module, recipe.rows.inputs)
    assert chain is not None
    layers, kinds = chain
    pool = recipe.rows.inputs.flatten(1).contiguous().numpy()
    values = _packed(layers)
    moments, options, f32 = np.zeros_like(values), recipe.optimizer.options, np.float32
    sizes = np.array([layers[0].in_features, *(layer.out_features for layer in layers)])
    factor, done = rate_factor(recipe.optimizer, recipe.steps), 0
    momentum, decay = f32(options.get("momentum", 0.0)), f32(options.get("weight_decay", 0.0))
    nesterov, divisor = f32(bool(options.get("nesterov", False))), f32(recipe.divisor)
    for some in _blocks(draws, max(1, ROWS_A_CALL // draws.size)):
        rates = np.array([recipe.optimizer.lr * factor(done + k) for k in range(len(some))], f32)
        steps(
            pool, recipe.rows.targets.numpy(), some, draws.size, rates, sizes, np.array(kinds), values, moments,
            momentum, decay, nesterov, divisor,
        )  # fmt: skip
        done += len(some)
    return _unpacked(module, layers, values)


def _blocks(draws: ReferenceDraws, count: int) -> Iterator[np.ndarray]:
    """The same draws, at most so many at a time: (K, B) int64, B rounded up to fours by repeating the first row."""
    from dptrain.training.reference_loops import subsets

    generator, members, size = draws.generator(), draws.members.contiguous().numpy(), draws.size
    by_floyd = len(members) <= 10000 or size <= len(members) // 20  # numpy shuffles the others
    for begin in range(0, draws.steps, count):
        some = min(count, draws.steps - begin)
        filled = np.empty((some, (size + 3) // 4 * 4), np.int64)
        if by_floyd:
            most = np.arange(len(members) - size, len(members))
            subsets(generator.integers(0, most, (some, size), endpoint=True), members, filled)
        else:
            for row in filled:
                row[:size] = members[generator.choice(len(members), size, replace=False, shuffle=False)]
                row[size:] = row[0]
        yield filled


def _chain(module: nn.Module, inputs: Tensor) -> tuple[list[nn.Linear], list[int]] | None:
    """The linear layers of a chain and what follows each, or None where it is none."""
    layers: list[nn.Linear] = []
    kinds: list[int] = []
    flat = inputs.ndim == 2
    for part in module if type(module) is nn.Sequential else ():
        if type(part) is nn.Flatten and (part.start_dim, part.end_dim) == (1, -1):
            flat = True
        elif type(part) is nn.Linear and flat and part.bias is not None and part not in layers:
            layers.append(part)
            kinds.append(0)
        elif type(part) in ACTIVATIONS and kinds and kinds[-1] == 0:
            kinds[-1] = ACTIVATIONS[type(part)]
        else:
            return None
    if not layers or kinds[-1] != 0 or not all(value.requires_grad for value in module.parameters()):
        return None
    return layers, kinds


def _packed(layers: Sequence[nn.Linear]) -> np.ndarray:
    """Weights and biases of all layers in one row, each layer's outputs rounded up to fours."""
    parts = []
    for layer in layers:
        for value in (layer.weight, layer.bias):
            filling = value.new_zeros(-len(value) % 4 * (value.numel() // len(value)))
            parts.append(torch.cat([value.detach().flatten(), filling]))
    return torch.cat(parts).numpy()


def _unpacked(module: nn.Module, layers: Sequence[nn.Linear], values: np.ndarray) -> dict[str, Tensor]:
    found, at = {}, 0
    for layer in layers:
        for value in (layer.weight, layer.bias):
            found[id(value)] = torch.from_numpy(values[at : at + value.numel()].copy()).view(value.shape)
            at += (len(value) + 3) // 4 * 4 * (value.numel() // len(value))
    return {name: found[id(value)] for name, value in module.named_parameters()}
