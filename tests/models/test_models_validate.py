"""Models that mix units, keep state or cannot be trained are refused; sound ones pass and are left alone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dptrain.errors import ConfigError
from dptrain.models.validate import check_model, replace_batchnorm

SHAPE = (3, 8, 8)


def convolutional(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), norm, nn.Flatten(), nn.Linear(6 * 36, 2))


class Flat(nn.Module):
    """A linear model on flattened rows whose subclasses do something to its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 2)

    def forward(self, x: Tensor) -> Any:
        return self.linear(x.flatten(1))


class BatchMean(Flat):
    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out - 0.001 * out.mean(dim=0)


class Gated(BatchMean):
    """Mixes behind a gate that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        out = self.linear(x.flatten(1))
        return out + self.gate * out.mean(dim=0)


class Sorted(Flat):
    """Routes by rank in the batch: the largest row is doubled."""

    def forward(self, x: Tensor) -> Tensor:
        largest = x.flatten(1).sum(1) == x.flatten(1).sum(1).max()
        return super().forward(x) * (1 + largest.float()[:, None])


class Counter(Flat):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place:
            self.seen += x.sum()
        else:
            self.seen = self.seen + x.sum()
        return super().forward(x)


class Remembers(Flat):
    """Keeps the last batch's mean in a plain attribute."""

    last: Tensor | float = 0.0

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x) + self.last
        self.last = x.mean()
        return out


class FixedBatch(Flat):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.view(6, 192))


class Squeezes(Flat):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


class Pair(Flat):
    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        return out, out


class WrongWidth(Flat):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :1]


class Bottomless(Flat):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / torch.zeros(())


def frozen() -> nn.Module:
    module = Flat()
    module.requires_grad_(False)
    return module


def not_finite() -> nn.Module:
    module = Flat()
    with torch.no_grad():
        module.linear.bias[1] = float("nan")
    return module


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (convolutional(nn.BatchNorm2d(6)), ["layer '1' (BatchNorm2d) mixes units", "model.replace_batchnorm=true"]),
        (convolutional(nn.BatchNorm2d(6, track_running_stats=False)), ["mixes units"]),
        (convolutional(nn.SyncBatchNorm(6)), ["layer '1' (SyncBatchNorm) mixes units"]),
        (convolutional(nn.InstanceNorm2d(6, track_running_stats=True)), ["layer '1'", "track_running_stats=False"]),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(2)), ["'1.weight' has no shape yet", "input size"]),
        (convolutional(nn.LazyBatchNorm2d()), ["has no shape yet"]),
        (BatchMean(), ["mixes units: changing one row"]),
        (Gated(), ["mixes units: changing one row"]),
        (Sorted(), ["mixes units: changing one row"]),
        (Counter(in_place=True), ["'seen' changes in a training-mode forward"]),
        (Counter(in_place=False), ["'seen' changes in a training-mode forward"]),
        (Remembers(), ["after it has seen different ones"]),
        (FixedBatch(), ["fails on 1 rows of shape", "any number of rows"]),
        (Squeezes(), ["gives (2,) for 1 rows, not (1, 2)", "squeeze"]),
        (Pair(), ["gives tuple for 6 rows"]),
        (WrongWidth(), ["gives (6, 1) for 6 rows, not (6, 2)"]),
        (Bottomless(), ["not finite on made-up rows"]),
        (frozen(), ["no trainable parameter"]),
        (not_finite(), ["'linear.bias' is not finite"]),
        (nn.Sequential(nn.Flatten(), nn.Linear(17, 2)), ["fails on 6 rows of shape (3, 8, 8)"]),
    ],
)
def test_refused_with_the_culprit_and_what_to_do(module: nn.Module, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_model(module, "mine", SHAPE, 2)
    for part in words:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_batchnorm_that_stays_frozen_is_a_fixed_map() -> None:
    class Frozen(nn.BatchNorm2d):
        def train(self, mode: bool = True) -> Frozen:
            return super().train(False)

    check_model(convolutional(Frozen(6)), "mine", SHAPE, 2)


def test_dropout_attention_and_layer_norm_pass() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
    check_model(nn.Sequential(encoder, nn.Flatten(), nn.LayerNorm(40), nn.Linear(40, 3)), "mine", (5, 8), 3)
    noisy = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout2d(0.5), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 3))
    check_model(noisy.double(), "mine", SHAPE, 3)


def test_everything_is_left_as_it_was() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 2)).eval()
    module.get_submodule("1").train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)
    check_model(module, "mine", SHAPE, 2)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    np.testing.assert_equal(np.random.get_state(legacy=False), states[2])
    assert [m.training for m in module.children()] == [False, True, False]
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())


def test_replace_batchnorm_names_what_it_replaced_and_the_result_passes() -> None:
    shared = nn.BatchNorm2d(6)
    module = nn.Sequential(
        nn.Conv2d(3, 6, 3), shared, nn.Sequential(nn.Conv2d(6, 6, 1), shared, nn.Conv2d(6, 96, 1), nn.BatchNorm2d(96))
    )
    module.add_module("head", nn.Sequential(nn.Flatten(), nn.Linear(96 * 36, 48), nn.BatchNorm1d(48), nn.Linear(48, 2)))
    assert replace_batchnorm(module) == ["1", "2.1", "2.3", "head.2"]
    norms = {name: m for name, m in module.named_modules() if isinstance(m, nn.GroupNorm)}
    assert {name: m.num_groups for name, m in norms.items()} == {"1": 6, "2.3": 32, "head.2": 6}
    assert module.get_submodule("2.1") is module.get_submodule("1")
    check_model(module, "mine", SHAPE, 2)


def test_replacing_keeps_affine_weights_and_whether_they_learn() -> None:
    module = convolutional(nn.BatchNorm2d(6))
    with torch.no_grad():
        module.get_submodule("1").weight.copy_(torch.arange(6.0))  # type: ignore[operator, union-attr]
    module.get_submodule("1").requires_grad_(False)
    replace_batchnorm(module)
    norm = module.get_submodule("1")
    assert isinstance(norm, nn.GroupNorm)
    assert torch.equal(norm.weight, torch.arange(6.0))
    assert not norm.weight.requires_grad


def test_flat_rows_do_not_die_where_batchnorm1d_is_replaced() -> None:
    """A group of one value would be normalised to zero for every row."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16))
    replace_batchnorm(module)
    outputs = module(torch.randn(5, 4))
    assert outputs.std(dim=0).min() > 0.1


def test_a_model_that_is_a_batchnorm_cannot_be_replaced() -> None:
    with pytest.raises(ConfigError, match="itself is a BatchNorm"):
        replace_batchnorm(nn.BatchNorm1d(4))
