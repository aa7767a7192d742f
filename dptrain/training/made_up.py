"""Made-up rows in the shape that a source declares: what may be timed without touching a private row."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dptrain.config import RunConfig, TrainConfig
from dptrain.config_budget import LedgerConfig
from dptrain.data.batches import PhysicalBatch
from dptrain.data.source import TOKENS
from dptrain.errors import ConfigError
from dptrain.gradients.bookkeeping.refusals import out_of_memory
from dptrain.gradients.protocol import trainable
from dptrain.models.probe import made_up_rows
from dptrain.models.reading import takes_ids
from dptrain.training.setup import Setup, prepare


def prepare_without_rows(config: TrainConfig, off: str) -> Setup:
    """Everything of a private run but its rows, checked. No account is opened, no purpose needed: nothing is read.

    Args:
        config: of a run.
        off: what is wrong with a plan without privacy, in words.

    Raises:
        ConfigError: as ``prepare``, or a plan without privacy.
    """
    free = replace(config, ledger=LedgerConfig(uri="none"), run=RunConfig(purpose="trial"))
    setup = prepare(free, check_folder=False)
    if setup.plan.mechanism is None:
        raise ConfigError("privacy", "off", off, "leave privacy=off out")
    return setup


def made_up_batch(setup: Setup, size: int, rows_per_unit: int = 1) -> PhysicalBatch:
    """A full physical batch of normal inputs (or token ids) and all classes in turn, on the model's device.

    Guarantee: made of public facts (``SourceInfo``) and a fixed seed; the source is not asked to load.

    Args:
        size: rows.
        rows_per_unit: rows that are one unit, side by side.

    Raises:
        ConfigError: so many rows do not fit into memory.
    """
    try:
        return _made_up_batch(setup, size, rows_per_unit)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        problem = "does not fit into memory"
        raise ConfigError("execution.physical_batch_size", size, problem, "lower it") from error


def _made_up_batch(setup: Setup, size: int, rows_per_unit: int) -> PhysicalBatch:
    generator = torch.Generator().manual_seed(0)
    info = setup.source.info
    dtype = next(iter(trainable(setup.module).values())).dtype
    classes = max(2, info.num_classes)
    regression = info.task == "regression"
    targets = torch.zeros(size, dtype=dtype) if regression else torch.arange(size, dtype=torch.int64) % classes
    if info.task == TOKENS:
        targets = targets[:, None].expand(size, info.input_shape[0]).clone()
    unit = torch.arange(size) // rows_per_unit
    batch = (
        _inputs(setup, size, generator, dtype),
        targets,
        unit,
        1.0 / torch.bincount(unit)[unit].float(),
    )
    device = next(setup.module.parameters()).device
    return PhysicalBatch(*(t.to(device) for t in batch))


def _inputs(setup: Setup, size: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Rows as the step sees them: a probe's are features."""
    width = getattr(getattr(setup.module, "head", None), "in_features", None)
    if setup.config.finetune.train == "probe" and isinstance(width, int):
        return torch.randn(size, width, generator=generator, dtype=dtype)
    if takes_ids(setup.module):
        return made_up_rows(setup.module, size, setup.spec.input_shape, generator)
    return torch.randn(size, *setup.spec.input_shape, generator=generator, dtype=dtype)
