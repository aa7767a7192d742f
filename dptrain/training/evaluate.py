"""Evaluation on rows declared public: free of privacy cost, so it may be looked at as often as one likes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dptrain.data.source import Rows
from dptrain.errors import ConfigError
from dptrain.gradients.protocol import RowLoss
from dptrain.registry import metrics as registered
from dptrain.training.metrics import BY_TASK, FITS, Predictions


def outputs_of(module: nn.Module, inputs: Tensor, batch_size: int) -> Tensor:  # (N, ...) -> (N, K) on the CPU
    """The model's outputs in evaluation mode, float64, without gradients; the training mode is restored."""
    device = next(module.parameters()).device
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            parts = [module(part.to(device)).double().cpu() for part in inputs.split(batch_size)]
    finally:
        module.train(was_training)
    return torch.cat(parts)


def metric_names(asked: Sequence[str], task: str) -> list[str]:
    """The metrics to compute: those asked for, or the task's usual ones.

    Raises:
        ConfigError: unknown, or of another task.
    """
    names = list(asked) or BY_TASK[task]
    for name in names:
        registered.resolve(name)
        wanted = FITS.get(name)
        if wanted is not None and task not in wanted:
            raise ConfigError("task.metrics", name, f"does not fit data of task {task}", f"try {BY_TASK[task][0]}")
    return names


def evaluate(
    module: nn.Module,
    rows: Rows,
    row_loss: RowLoss,
    task: str,
    names: Sequence[str],
    batch_size: int,
    class_names: tuple[str, ...] = (),
) -> dict[str, float]:
    """``public_loss`` and ``test_<metric>`` on public rows. A value that is not finite is left out."""
    outputs = outputs_of(module, rows.inputs, batch_size)
    loss = row_loss(outputs.float(), rows.targets).mean().item()
    predictions = Predictions(task, np.nan_to_num(outputs.numpy()), rows.targets.numpy(), class_names)
    values = {"public_loss": loss} | {f"test_{name}": registered.resolve(name)(predictions) for name in names}
    return {name: float(value) for name, value in values.items() if np.isfinite(value)}
