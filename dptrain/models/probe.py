"""Runs a model on made-up rows to see that every row's output is its own and that nothing is remembered."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from dptrain.errors import ConfigError
from dptrain.models.reading import takes_ids

ROWS = 6
"""Rows of the probe's batch."""
RELATIVE = 1e-5
"""Largest change of a row's output, relative to the batch's largest, that counts as rounding."""
JITTER = 0.05
"""Standard deviation added to every parameter in a second pass, so that a layer started at zero hides nothing."""

State = dict[str, Tensor]


def probe(module: nn.Module, name: str, input_shape: tuple[int, ...], num_outputs: int) -> None:
    """Refuses a module, in the mode it is in, whose outputs for one row depend on another row or on the past.

    Rows are uniform in [0, 2), or token ids (``made_up_rows``). One row of a batch is replaced, by another and by one a
    thousand times as large (ids: by others); the outputs of all others must stay. Every pass starts from the
    same random state, so dropout draws the same. Parameters and buffers are copies: the module itself is not changed.

    Args:
        module: the model in training mode.
        name: its registered name, for messages.
        input_shape: shape of one row.
        num_outputs: expected width of the output.

    Raises:
        ConfigError: rows mix; a buffer changes; the outcome depends on earlier batches; the shape is not
            (R, num_outputs); some batch size fails; outputs are not finite.
    """
    generator = torch.Generator().manual_seed(20_210)
    reference = next(p for p in module.parameters() if p.is_floating_point())
    rows = made_up_rows(module, 2 * ROWS, input_shape, generator).to(reference.device)
    given = {k: v.detach().clone() for k, v in [*module.named_parameters(), *module.named_buffers()]}
    trained = dict(module.named_parameters())
    with torch.no_grad():
        _check_shapes(module, name, given, rows, num_outputs)
        _check_apart(module, name, given, rows)
        moved = {k: _jittered(v, generator) if k in trained else v for k, v in given.items()}
        _check_apart(module, name, moved, rows)


def check_deterministic(module: nn.Module, name: str, input_shape: tuple[int, ...]) -> None:
    """Refuses a module that, in training mode, draws random numbers that change its outputs (dropout).

    Its masks would come from torch's generator, whose state anyone can compute from the published seed, and go by
    a row's place in the batch: a unit that leaves would change the masks of others, and their contributions with
    them. No sensitivity bound covers that.

    Raises:
        ConfigError: the outputs of the same rows differ between two random states.
    """
    reference = next(p for p in module.parameters() if p.is_floating_point())
    rows = made_up_rows(module, ROWS, input_shape, torch.Generator().manual_seed(20_211)).to(reference.device)
    given = {k: v.detach().clone() for k, v in [*module.named_parameters(), *module.named_buffers()]}
    generator = torch.Generator().manual_seed(20_212)
    trained = dict(module.named_parameters())
    moved = {k: _jittered(v, generator) if k in trained else v for k, v in given.items()}
    was_training = module.training
    module.train()
    try:
        with torch.no_grad():
            for state in (given, moved):
                first = _forward(module, state, rows, seed=0)[0]
                if any(not _close(first, _forward(module, state, rows, seed=seed)[0]) for seed in (1, 2, 3)):
                    raise ConfigError(
                        "model",
                        name,
                        "draws random numbers in training (dropout?), which would tie units together",
                        "set dropout to 0; the noise of private training regularises already",
                    )
    finally:
        module.train(was_training)


def made_up_rows(module: nn.Module, count: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Rows that a model can read: uniform in [0, 2); for one that ``takes_ids``, ids of its vocabulary.

    Every other row of ids ends early, in the padding token where the model names one (``pad``).
    """
    reference = next(p for p in module.parameters() if p.is_floating_point())
    if not takes_ids(module):
        return (2 * torch.rand(count, *shape, generator=generator)).to(reference.dtype)
    ids = torch.randint(0, int(getattr(module, "vocabulary", 2)), (count, *shape), generator=generator)
    pad = getattr(module, "pad", None)
    if pad is not None:
        for row in range(0, count, 2):
            ids[row, ..., 1 + (row * shape[-1]) // count :] = pad
    return ids


def _scaled(rows: Tensor, factor: int, module: nn.Module) -> Tensor:
    """Rows that are larger; of ids, others."""
    return factor * rows if rows.is_floating_point() else (factor * rows) % int(getattr(module, "vocabulary", 2))


def _check_shapes(module: nn.Module, name: str, state: State, rows: Tensor, num_outputs: int) -> None:
    remedy = "let forward take any number of rows: x.flatten(1), x.squeeze(-1), not x.view(64, -1), x.squeeze()"
    for count in (ROWS, 1, 2):
        try:
            outputs, after = _forward(module, state, rows[:count])
        except ConfigError:
            raise
        except Exception as error:
            problem = f"fails on {count} rows of shape {tuple(rows.shape[1:])} ({type(error).__name__}: {error})"
            raise ConfigError("model", name, problem, remedy) from error
        for key in state:
            if not _same(state[key], after[key]):
                problem = f"'{key}' changes in a training-mode forward, so it holds what it saw of the rows"
                raise ConfigError("model", name, problem, "compute without keeping state in forward")
        if not isinstance(outputs, Tensor) or tuple(outputs.shape) != (count, num_outputs):
            got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            problem = f"gives {got} for {count} rows, not ({count}, {num_outputs})"
            raise ConfigError("model", name, problem, remedy)
        if not bool(torch.isfinite(outputs).all()):
            raise ConfigError(
                "model", name, "gives outputs that are not finite on made-up rows in [0, 2)", "mend its initialisation"
            )


def _check_apart(module: nn.Module, name: str, state: State, rows: Tensor) -> None:
    batch, others = rows[:ROWS], rows[ROWS:]
    base, _ = _forward(module, state, batch)
    _forward(module, state, _scaled(others, 3, module))
    again, _ = _forward(module, state, batch)
    if not _close(base, again):
        problem = "gives other outputs for the same rows after it has seen different ones"
        raise ConfigError("model", name, problem, "keep no state between batches")
    for place in (0, ROWS // 2):
        for replacement in (others[place], _scaled(others[place], 1000, module)):
            changed = batch.clone()
            changed[place] = replacement
            outputs, _ = _forward(module, state, changed)
            kept = [row for row in range(ROWS) if row != place]
            if not _close(base[kept], outputs[kept]):
                raise ConfigError(
                    "model",
                    name,
                    "mixes units: changing one row changes the outputs of others",
                    "compute every row from that row alone (no statistics, sorting or routing over the batch)",
                )


def _forward(module: nn.Module, state: State, inputs: Tensor, seed: int = 0) -> tuple[Tensor, State]:
    """Outputs, and the state after the pass, from copies and a fixed random state."""
    copies = {key: value.clone() for key, value in state.items()}
    with _fixed_randomness(inputs.device, seed):
        outputs = functional_call(module, copies, (inputs.clone(),))
    return outputs, copies


@contextmanager
def _fixed_randomness(device: torch.device, seed: int = 0) -> Iterator[None]:
    """The same random numbers every time; the caller's random states come back afterwards."""
    held_python, held_numpy = random.getstate(), np.random.get_state()
    cuda = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield
    finally:
        random.setstate(held_python)
        np.random.set_state(held_numpy)


def _jittered(value: Tensor, generator: torch.Generator) -> Tensor:
    if not value.is_floating_point():
        return value
    return value + JITTER * torch.randn(value.shape, generator=generator).to(value.device, value.dtype)


def _same(before: Tensor, after: Tensor) -> bool:
    return before.shape == after.shape and bool(((before == after) | (before.isnan() & after.isnan())).all())


def _close(before: Tensor, after: Tensor) -> bool:
    """Equal up to rounding; values that are not finite must agree exactly."""
    finite = before[torch.isfinite(before)]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(before, after, rtol=0.0, atol=RELATIVE * scale, equal_nan=True)
