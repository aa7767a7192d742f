"""Picture models of timm: what a folder says of its pictures, and, where timm is installed, that rows stay apart."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dptrain.errors import ConfigError
from dptrain.models.efficientnet import ImageClassifier, fill_from
from dptrain.models.frozen import FrozenBody
from dptrain.models.timm import describe, three, timm_model
from dptrain.models.validate import check_model


def folder(path: Path, **more: Any) -> str:
    save_file({"weight": torch.zeros(1)}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"architecture": "resnet18", **more}))
    return str(path)


def test_mean_and_spread_come_from_the_folder_and_yield_to_the_user(tmp_path: Path) -> None:
    told = folder(tmp_path, pretrained_cfg={"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]})
    assert describe(told, {})["mean"] == [0.485, 0.456, 0.406]
    assert describe(told, {"std": [0.5, 0.5, 0.5]})["std"] == [0.5, 0.5, 0.5]
    assert describe(folder(tmp_path), {"size": 64}) == {"architecture": "resnet18", "size": 64}


@pytest.mark.parametrize("mean", [[0.5], "grey", [0.1, 0.2, 3.0], None])
def test_a_config_with_other_means_is_refused(tmp_path: Path, mean: Any) -> None:
    with pytest.raises(ConfigError, match="its mean is not three numbers"):
        describe(folder(tmp_path, pretrained_cfg={"mean": mean}), {})


def test_a_spread_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.options\.std"):
        three("model.options.std", [0.2, 0.0, 0.2], 1e-3)


def test_pictures_are_brought_to_the_mean_and_spread_of_the_weights() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    rows = torch.rand(2, 3, 4, 4)
    module = ImageClassifier(nn.Flatten(), nn.Linear(48, 2), 4, False, mean, std)
    expected = torch.stack([(rows[:, c] - mean[c]) / std[c] for c in range(3)], 1).flatten(1)
    assert torch.allclose(module.features(rows), expected)
    plain = ImageClassifier(nn.Flatten(), nn.Linear(48, 2), 4, False)
    assert torch.equal(plain.features(rows), (2.0 * rows - 1.0).flatten(1))
    assert FrozenBody(module, rows[:1]).version != FrozenBody(plain, rows[:1]).version, "features of another spread"


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "mobilenetv3_small_100"])
def test_networks_of_timm_keep_units_apart(name: str, tmp_path: Path) -> None:
    try:
        known: Any = importlib.import_module("timm")
    except Exception as error:  # torchvision of another torch raises RuntimeError
        pytest.skip(f"needs timm and a torchvision that fits: {error}")
    torch.manual_seed(0)
    weights = known.create_model(name, pretrained=False, num_classes=0).state_dict()
    save_file(
        {key: value for key, value in weights.items() if value.is_floating_point()}, tmp_path / "model.safetensors"
    )
    module = timm_model((3, 32, 32), 2, architecture=name, size=64)
    fill_from(module, str(tmp_path))
    check_model(module, "timm", (3, 32, 32), 2)
    module.train()
    rows = torch.rand(4, 3, 32, 32)
    other = torch.cat([rows[:1], torch.rand(3, 3, 32, 32)])
    with torch.no_grad():
        assert torch.equal(module(rows)[0], module(other)[0])
