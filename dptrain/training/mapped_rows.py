"""Rows as a run's model reads them: fixed feature map first, then the run's number format."""

from __future__ import annotations

from pathlib import Path

import torch

from dptrain.data.source import Rows
from dptrain.models.features import cached_features
from dptrain.run_folder import CACHE
from dptrain.training.setup import Setup


def mapped_rows(setup: Setup, rows: Rows, cache: Path | None = CACHE) -> Rows:
    """Units as they were; ids of tokens and classes stay whole numbers.

    Args:
        setup: of the run.
        rows: raw.
        cache: where mapped rows are kept (internal tier), or None.
    """
    inputs = rows.inputs
    if setup.spec.features != "none":
        inputs = cached_features(setup.spec.features, inputs, cache)
    dtype = torch.float64 if setup.config.execution.dtype == "float64" else torch.float32
    targets = rows.targets if rows.targets.dtype == torch.int64 else rows.targets.to(dtype)
    return Rows(inputs.to(dtype) if inputs.is_floating_point() else inputs, targets, rows.unit_id)
