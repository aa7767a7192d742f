"""A picture network with fixed batch statistics: rows apart, the same numbers as BatchNorm in evaluation mode."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dptrain.data.batches import PhysicalBatch
from dptrain.errors import ConfigError
from dptrain.gradients.protocol import ClippingRule, EngineSettings, trainable
from dptrain.models.efficientnet import Body, ImageClassifier, SameConv, efficientnet_lite0, fill_from
from dptrain.models.fixed_norm import FixedNorm, fix_batchnorm
from dptrain.models.frozen import FrozenBody
from dptrain.models.pretrained import loader_of
from dptrain.models.timm import timm_model
from dptrain.models.validate import check_model
from dptrain.registry import engines
from dptrain.training.losses import cross_entropy


def small() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    norm = made[1]
    assert isinstance(norm, nn.BatchNorm2d)
    for _ in range(3):  # statistics of its own
        norm(torch.randn(8, 4, 6, 6) * 2 + 1)
    nn.init.normal_(norm.weight)
    return made


def test_fixed_statistics_are_those_of_evaluation() -> None:
    module, rows = small(), torch.randn(5, 2, 8, 8)
    expected = module.eval()(rows)
    assert fix_batchnorm(module) == ["1"]
    assert torch.allclose(module.train()(rows), expected, atol=1e-5)
    check_model(module, "fixed", (2, 8, 8), 3)


def test_units_stay_apart_with_fixed_statistics_and_sums_are_exact() -> None:
    module, rows = small(), torch.randn(4, 2, 8, 8)
    fix_batchnorm(module)
    module.train()
    batch = PhysicalBatch(rows, torch.tensor([0, 1, 2, 0]), torch.arange(4), torch.ones(4))
    found = []
    for name in ("bookkeeping", "loop"):
        total = torch.zeros(sum(p.numel() for p in trainable(module).values()), dtype=torch.float64)
        engine = engines.build(name, module, cross_entropy, ClippingRule(0.1, None), EngineSettings())
        found.append((total, engine.add_clipped_sum(batch, total).norms))
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-5)
    assert float((found[0][0] - found[1][0]).norm()) < 1e-5 * float(found[1][0].norm())


def test_batch_statistics_that_look_at_the_batch_are_still_refused() -> None:
    with pytest.raises(ConfigError, match="mixes units"):
        check_model(small().train(), "batchnorm", (2, 8, 8), 3)


def test_the_network_is_the_published_size_and_keeps_units_apart() -> None:
    module = efficientnet_lite0((1, 28, 28), 10, size=32)
    assert isinstance(module, ImageClassifier)
    assert sum(p.numel() for p in Body().parameters()) == 4_652_008 - 1_281_000, "without a head of 1,000"
    assert sum(isinstance(layer, FixedNorm) for layer in module.modules()) == 49
    check_model(module, "efficientnet_lite0", (1, 28, 28), 10)
    body = FrozenBody(module, torch.rand(1, 1, 28, 28))
    assert body.output_shape == (1280,)
    rows = torch.rand(3, 1, 28, 28)
    assert torch.allclose(module.eval()(rows), module(body(rows)), atol=1e-5)


def test_padding_is_as_large_as_the_stride_asks() -> None:
    for side, stride in ((7, 1), (8, 2), (9, 2)):
        assert SameConv(1, 1, 3, stride)(torch.rand(1, 1, side, side)).shape[-1] == -(-side // stride)


def test_weights_come_from_safetensors_or_not_at_all(tmp_path: Path) -> None:
    torch.manual_seed(3)
    source = Body()
    save_file(dict(source.state_dict()), tmp_path / "model.safetensors")
    module = efficientnet_lite0((3, 32, 32), 2, size=32)
    fill_from(module, str(tmp_path))
    assert torch.equal(module.get_submodule("body")._conv_stem.weight, source._conv_stem.weight)  # pyright: ignore
    state = dict(source.state_dict())
    state.pop("_conv_head.weight")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="lacks '_conv_head"):
        fill_from(module, str(tmp_path))
    (tmp_path / "model.safetensors").rename(tmp_path / "efficientnet.pth")
    with pytest.raises(ConfigError, match="can run code"):
        fill_from(module, str(tmp_path))


def test_folders_are_for_models_that_are_read_from_one() -> None:
    assert loader_of("mlp", None) is None
    with pytest.raises(ConfigError, match=r"model\.path=null: is needed by model=hf"):
        loader_of("hf", None)
    with pytest.raises(ConfigError, match="is not read by model 'mlp'"):
        loader_of("mlp", "somewhere")


def test_timm_is_refused_in_one_line_where_it_is_not_installed() -> None:
    try:
        import timm  # noqa: F401  # pyright: ignore[reportMissingImports]
    except Exception:
        with pytest.raises(ConfigError, match="needs timm, which cannot be imported"):
            timm_model((3, 32, 32), 2, architecture="resnet18")
    else:
        with pytest.raises(ConfigError, match="is no model of timm"):
            timm_model((3, 32, 32), 2, architecture="hf-hub:somebody/model")
