"""A folder of pictures: declared classes, one shape, and no file taken on trust."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dptrain.config_data import DataConfig
from dptrain.data.source import Source
from dptrain.errors import ConfigError
from dptrain.registry import sources


def folder_of(root: Path, count: int = 6) -> DataConfig:
    """Grey pictures whose shade is their number, and one white picture in colour mode."""
    for number in range(count):
        place = root / ("cat" if number % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 7), number * 10).save(place / f"{number}.png")
    Image.new("RGB", (30, 20), (255, 255, 255)).save(root / "cat" / "white.jpg")
    (root / "cat" / ".hidden").write_text("not a picture")
    return DataConfig(
        name="image_folder", path=str(root), classes=["cat", "dog"], image_size=[1, 4, 5], public_size=6,
        public_fraction=0.3,
    )  # fmt: skip


def build(config: DataConfig, seed: int = 0) -> Source:
    return sources.build("image_folder", config, seed)


def test_pictures_become_tensors_of_the_declared_shape(tmp_path: Path) -> None:
    config = folder_of(tmp_path / "mine")
    folder_of(tmp_path / "public")
    source = build(replace(config, public_fraction=None, public_path=str(tmp_path / "public")))
    rows = source.load().train
    assert source.info.input_shape == (1, 4, 5) and source.info.task == "binary" and rows.inputs.shape == (7, 1, 4, 5)
    assert rows.targets.tolist() == [0, 0, 0, 0, 1, 1, 1]
    shades = (rows.inputs.amax((1, 2, 3)) * 255).round().int().tolist()
    assert shades == [10, 30, 50, 255, 0, 20, 40]
    assert torch.equal(rows.inputs.amax((1, 2, 3)), rows.inputs.amin((1, 2, 3)))


def test_colour_has_three_channels_in_order(tmp_path: Path) -> None:
    config = folder_of(tmp_path, 2)
    Image.new("RGB", (3, 3), (255, 0, 51)).save(tmp_path / "cat" / "0.png")
    splits = build(replace(config, image_size=[3, 2, 2], public_fraction=0.01)).load()
    assert splits.train.inputs[0, :, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])


def test_the_split_goes_by_name_and_another_picture_moves_none(tmp_path: Path) -> None:
    config = folder_of(tmp_path, 40)
    before = build(config).load()
    assert len(before.train) + len(before.public) == 41 and len(before.public) > 0
    Image.new("L", (9, 7), 255).save(tmp_path / "cat" / "00.png")
    after = build(config).load()
    old = {float(picture.amax()) for picture in before.public.inputs}
    assert old <= {float(picture.amax()) for picture in after.public.inputs}
    assert not torch.equal(build(config, seed=1).load().public.targets, before.public.targets)


def spoil(root: Path, how: str) -> None:
    good = (root / "cat" / "white.jpg").read_bytes()
    target = root / "cat" / "bad.png"
    if how == "junk":
        target.write_bytes(b"\xff\x00" * 200)
    if how == "empty":
        target.write_bytes(b"")
    if how == "truncated":
        target.write_bytes(good[: len(good) * 2 // 3])
    if how == "folder":
        target.mkdir()
    if how == "link":
        outside = root.parent / "outside.jpg"
        outside.write_bytes(good)
        target.symlink_to(outside)
    if how == "dead link":
        target.symlink_to(root / "cat" / "gone.png")
    if how == "deep":
        Image.fromarray(np.full((3, 3), 40_000, dtype=np.uint16)).save(target)


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("junk", "is not a readable picture"),
        ("empty", "is not a readable picture"),
        ("truncated", "is not a readable picture"),
        ("folder", "is not a readable picture"),
        ("dead link", "is not a readable picture"),
        ("link", "is a link that leads out of the folder"),
        ("deep", "has more than 8 bits"),
    ],
)
def test_what_is_no_picture_is_refused_and_named(tmp_path: Path, how: str, problem: str) -> None:
    config = folder_of(tmp_path / "mine")
    spoil(tmp_path / "mine", how)
    with pytest.raises(ConfigError, match=rf"data\.path=.*bad\.png: {problem}"):
        build(config).load()


def test_the_guard_against_decompression_bombs_stays_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = folder_of(tmp_path)
    for pixels in (400, 200):  # 600 pixels: 1.5 times the limit (a warning of PIL's) and 3 times (its error)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
        with pytest.raises(ConfigError, match=r"white\.jpg: has too many pixels"):
            build(config).load()


def test_folders_and_classes_must_agree(tmp_path: Path) -> None:
    config = folder_of(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.path=.*cow: there is no such folder"):
        build(replace(config, classes=["cat", "dog", "cow"]))
    (tmp_path / "fish").mkdir()
    with pytest.raises(ConfigError, match=r"fish: is a sub-folder that data\.classes does not name"):
        build(config).load()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"image_size": None}, r"data\.image_size"),
        ({"image_size": [2, 4, 4]}, r"data\.image_size"),
        ({"image_size": [1, 0, 4]}, r"data\.image_size"),
        ({"classes": None}, r"data\.classes"),
        ({"classes": ["cat", "../dog"]}, r"data\.classes"),
        ({"public_size": None}, r"data\.public_size"),
        ({"public_fraction": None}, r"data\.public_path"),
        ({"task": "regression"}, r"data\.task"),
        ({"unit_column": "who"}, r"data\.unit_column"),
        ({"path": "nowhere"}, r"data\.path=nowhere"),
    ],
)
def test_bad_declarations_are_refused(tmp_path: Path, given: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        build(replace(folder_of(tmp_path), **given))


def test_too_few_pictures_are_refused(tmp_path: Path) -> None:
    config = folder_of(tmp_path)
    for file in tmp_path.glob("*/*"):
        file.unlink()
    with pytest.raises(ConfigError, match="holds no picture"):
        build(config).load()
    Image.new("L", (3, 3)).save(tmp_path / "dog" / "only.png")
    with pytest.raises(ConfigError, match="training pictures"):
        build(config).load()
