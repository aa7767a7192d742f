"""The shipped model configs name every option of their builder, with values that build."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml

from dptrain.config import ModelConfig
from dptrain.models.pretrained import LOADERS
from dptrain.models.validate import check_model
from dptrain.registry import features, models

FOLDER = Path(__file__).parents[2] / "configs" / "model"
FILES = [path for path in sorted(FOLDER.glob("*.yaml")) if yaml.safe_load(path.read_text())["name"] not in ("", "???")]
"""Every shipped model; a file whose name is left open is for a user's own."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config_lists_every_option_and_builds(path: Path) -> None:
    config = ModelConfig(**yaml.safe_load(path.read_text()))
    parameters = inspect.signature(models.resolve(config.name)).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    if "architecture" in config.options:  # begins at random; options of other uses are left out
        assert set(config.options) <= set(defaults)
        del config.options["architecture"]
    else:
        found_in_the_folder = {"architecture", "lora", "mean", "std"} if config.name in LOADERS else set()
        assert set(config.options) == set(defaults) - found_in_the_folder
    for name, value in config.options.items():
        assert value == (list(defaults[name]) if isinstance(defaults[name], tuple) else defaults[name])
    if config.features == "scatter":
        pytest.importorskip("kymatio")
    if config.name in LOADERS and "architecture" in defaults:
        return  # there is nothing to build without a folder of weights
    shape = features.build(config.features, (1, 28, 28)).output_shape
    check_model(models.build(config.name, shape, 10, options=config.options), config.name, shape, 10)


def test_every_shipped_model_has_a_config() -> None:
    shipped = {name for name in models.names() if models.resolve(name).__module__.startswith("dptrain.")}
    assert shipped <= {path.stem for path in FILES}
