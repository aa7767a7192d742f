"""A small private data set for tests of whole runs: the sign of the first of four numbers is the class."""

from __future__ import annotations

import torch

from dptrain.config_data import DataConfig
from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.registry import sources


def register_people(name: str, train: int, public: int) -> None:
    """Files a source ``name`` of so many training and public rows; ``data.public_size`` overrides what it declares."""

    @sources.register(name)
    def people(config: DataConfig, seed: int) -> Source:
        def load() -> Splits:
            generator = torch.Generator().manual_seed(1)
            x = torch.randn(train + public, 4, generator=generator)
            y = (x[:, 0] > 0).long()
            return Splits(train=Rows(x[:train], y[:train]), public=Rows(x[train:], y[train:]))

        size = config.public_size or train
        info = SourceInfo(name="people", task="binary", input_shape=(4,), num_classes=2, public_size=size)
        return Source(info, load)
