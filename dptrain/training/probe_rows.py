"""A probe's rows: the frozen body of a pretrained model maps them once, and its head is trained on what comes out."""

from __future__ import annotations

import torch

from dptrain.data.source import Rows, Splits
from dptrain.models.frozen import FrozenBody, frozen_features
from dptrain.models.probe import made_up_rows
from dptrain.run_folder import CACHE
from dptrain.training.setup import Setup


def with_features(setup: Setup, splits: Splits) -> Splits:
    """The rows as the frozen body maps them, for ``finetune.train=probe``; else the rows as they are.

    Nothing is charged for it: the map looks at one row at a time and learns nothing. Cached rows are internal tier.

    Raises:
        ConfigError: the model has no body and head of its own.
    """
    if setup.config.finetune.train != "probe":
        return splits
    body = FrozenBody(setup.module, made_up_rows(setup.module, 1, setup.spec.input_shape, _always_the_same()))

    def mapped(rows: Rows) -> Rows:
        features = frozen_features(body, rows.inputs, CACHE)
        return Rows(features.to(next(setup.module.parameters()).dtype), rows.targets, rows.unit_id)

    held = None if splits.validation is None else mapped(splits.validation)
    return Splits(mapped(splits.train), mapped(splits.public), held)


def _always_the_same() -> torch.Generator:
    return torch.Generator().manual_seed(0)
