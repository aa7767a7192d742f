"""The shipped models: sizes of the literature, options refused by name, per-sample gradients under vmap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from dptrain.errors import ConfigError
from dptrain.models.validate import check_model
from dptrain.models.wrn import ScaledConv2d
from dptrain.registry import models

SMALL_WRN: dict[str, Any] = {"depth": 10, "width": 1, "groups": 4}


def build(name: str, shape: tuple[int, ...], outputs: int, **options: Any) -> nn.Module:
    return models.build(name, shape, outputs, options=options)


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_tanh_cnn_has_the_published_number_of_parameters() -> None:
    assert size(build("tanh_cnn", (1, 28, 28), 10)) == 26_010


@pytest.mark.parametrize("side", [16, 17, 24, 28, 32, 40])
def test_tanh_cnn_fits_other_sizes(side: int) -> None:
    module = build("tanh_cnn", (3, side, side + 1), 2)
    assert module(torch.rand(2, 3, side, side + 1)).shape == (2, 2)


def test_wrn_16_4_has_sixteen_layers_and_its_published_size() -> None:
    module = build("wrn", (3, 32, 32), 10, weight_standardization=False)
    deep = [m for m in module.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(deep) == 13  # with the head and two strided shortcuts counted as the paper does: 16
    # Zagoruyko and Komodakis 2016, table 4, gives 2.7 M for WRN-16-4.
    assert size(module) == pytest.approx(2.75e6, rel=0.01)


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("linear", (5,), {}),
        ("linear", (1, 8, 8), {"zero_init": True}),
        ("mlp", (1, 8, 8), {"hidden": [16, 8], "activation": "relu"}),
        ("mlp", (7,), {"hidden": []}),
        ("tanh_cnn", (1, 16, 16), {}),
        ("wrn", (1, 8, 8), SMALL_WRN),
        ("wrn", (3, 9, 11), SMALL_WRN | {"weight_standardization": False}),
    ],
)
def test_every_model_keeps_units_apart_and_has_vmap_gradients(
    name: str, shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    module = build(name, shape, 3, **options)
    check_model(module, name, shape, 3)
    inputs, targets = torch.rand(4, *shape), torch.tensor([0, 1, 2, 0])
    parameters = dict(module.named_parameters())

    def loss(values: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(module, dict(values), (x[None],)), y[None])

    together = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, inputs, targets)
    for row in range(4):
        module.zero_grad()
        F.cross_entropy(module(inputs[row : row + 1]), targets[row : row + 1]).backward()
        for key, parameter in parameters.items():
            assert parameter.grad is not None
            torch.testing.assert_close(together[key][row], parameter.grad, rtol=1e-3, atol=1e-5)


def test_linear_zero_init_starts_at_zero() -> None:
    module = build("linear", (6,), 4, zero_init=True)
    assert torch.equal(module(torch.rand(3, 6)), torch.zeros(3, 4))


def test_standardised_filters_do_not_see_shift_and_scale() -> None:
    torch.manual_seed(0)
    layer = ScaledConv2d(3, 4, 3, 1, 1)
    inputs = torch.rand(2, 3, 5, 5)
    before = layer(inputs)
    with torch.no_grad():
        layer.weight.mul_(3.0).add_(0.7)
    torch.testing.assert_close(layer(inputs), before, rtol=1e-2, atol=1e-2)
    assert before.abs().max() > 0.05


@pytest.mark.parametrize(
    ("name", "shape", "options", "field"),
    [
        ("linear", (4,), {"zero_init": "yes"}, "model.options.zero_init"),
        ("linear", (4,), {"zero_inti": True}, "model.options.zero_inti"),
        ("mlp", (4,), {"hidden": [0]}, "model.options.hidden"),
        ("mlp", (4,), {"hidden": 12}, "model.options.hidden"),
        ("mlp", (4,), {"hidden": "12"}, "model.options.hidden"),
        ("mlp", (4,), {"hidden": [True]}, "model.options.hidden"),
        ("mlp", (4,), {"hidden": [], "activation": "tahn"}, "model.options.activation"),
        ("tanh_cnn", (1, 28, 28), {"activation": None}, "model.options.activation"),
        ("tanh_cnn", (1, 15, 28), {}, "model"),
        ("tanh_cnn", (28, 28), {}, "model"),
        ("wrn", (1, 28, 28), {"depth": 17}, "model.options.depth"),
        ("wrn", (1, 28, 28), {"depth": 4}, "model.options.depth"),
        ("wrn", (1, 28, 28), {"width": 0}, "model.options.width"),
        ("wrn", (1, 28, 28), {"width": 1.5}, "model.options.width"),
        ("wrn", (1, 28, 28), {"groups": 3}, "model.options.groups"),
        ("wrn", (1, 28, 28), {"groups": 0}, "model.options.groups"),
        ("wrn", (1, 28, 28), {"weight_standardization": 1}, "model.options.weight_standardization"),
        ("wrn", (1, 4, 4), {}, "model"),
    ],
)
def test_wrong_options_and_shapes_are_refused_by_name(
    name: str, shape: tuple[int, ...], options: dict[str, Any], field: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        build(name, shape, 10, **options)
    assert caught.value.field == field


def test_a_near_miss_is_suggested() -> None:
    with pytest.raises(ConfigError, match="did you mean 'tanh'"):
        build("mlp", (4,), 2, activation="tahn")
