"""scikit-learn's digits: one split for everybody."""

from __future__ import annotations

import torch

from dptrain.config_data import DataConfig
from dptrain.data.digits import digits
from dptrain.registry import sources


def test_the_split_is_whole_and_the_same_for_every_seed() -> None:
    from sklearn.datasets import load_digits

    first = digits(DataConfig(), seed=0)
    one, other = first.load(), digits(DataConfig(), seed=99).load()
    assert torch.equal(one.train.inputs, other.train.inputs) and torch.equal(one.public.targets, other.public.targets)
    assert len(one.train) == one.train.num_units == first.info.public_size == 1437 and len(one.public) == 360
    assert one.train.inputs.shape[1:] == first.info.input_shape == (1, 8, 8)
    assert float(one.train.inputs.min()) == -1.0 and float(one.train.inputs.max()) == 1.0
    both = torch.cat([one.train.inputs, one.public.inputs]).flatten(1)
    raw = torch.tensor(load_digits(return_X_y=True)[0], dtype=torch.float32) / 8 - 1
    assert sorted(both.tolist()) == sorted(raw.tolist())


def test_shipped_sources_are_registered() -> None:
    assert {"digits", "mnist", "fashion_mnist", "adult", "csv", "parquet", "image_folder"} <= set(sources.names())


def test_a_declared_size_is_taken_over() -> None:
    assert digits(DataConfig(public_size=2000), seed=0).info.public_size == 2000
