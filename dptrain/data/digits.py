"""scikit-learn's handwritten digits: small, built in, good for a first run."""

from __future__ import annotations

import numpy as np
import torch

from dptrain.config_data import DataConfig
from dptrain.data.settings import only_uses
from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.registry import sources

ROWS = 1797
PUBLIC_ROWS = 360
LARGEST = 16.0
"""Documented range of a value: 0 to 16."""
SPLIT_SEED = 20_170_825
"""Fixes the split for every run and machine; legacy RandomState's stream is frozen by NumPy's promise."""


@sources.register("digits")
def digits(config: DataConfig, seed: int) -> Source:
    """1,797 pictures of 8 by 8 pixels, ten classes; 1,437 train, 360 are public. Inputs (1, 8, 8) in [-1, 1].

    The split is a fixed permutation of positions: it looks at no content and is the same for every seed.

    Raises:
        ConfigError: a setting that this source does not use is set.
    """
    only_uses(config, ["public_size"])
    info = SourceInfo(
        name="digits",
        task="multiclass",
        input_shape=(1, 8, 8),
        num_classes=10,
        public_size=config.public_size or ROWS - PUBLIC_ROWS,
        class_names=tuple("0123456789"),
        licence="BSD-3-Clause (scikit-learn); UCI CC BY 4.0",
        public_split=f"{PUBLIC_ROWS} rows chosen by a fixed permutation of positions",
        is_public=True,
    )
    return Source(info, _load)


def _load() -> Splits:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    inputs = torch.from_numpy(pixels.astype(np.float32)).reshape(-1, 1, 8, 8) * (2.0 / LARGEST) - 1.0
    rows = Rows(inputs, torch.from_numpy(labels.astype(np.int64)))
    order = torch.from_numpy(np.random.RandomState(SPLIT_SEED).permutation(ROWS))
    return Splits(
        train=rows.take(order[PUBLIC_ROWS:].sort().values), public=rows.take(order[:PUBLIC_ROWS].sort().values)
    )
