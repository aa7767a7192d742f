"""A user's own pictures: one sub-folder a class, classes declared."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dptrain.config_data import DataConfig
from dptrain.data.settings import check_split, existing, needed, only_uses
from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.data.split import split_ids
from dptrain.data.table import check_classes, describe_split
from dptrain.errors import ConfigError
from dptrain.registry import sources

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Decoders that are tried; PIL knows many more, each a risk with files from strangers."""


@sources.register("image_folder")
def image_folder(config: DataConfig, seed: int) -> Source:
    """Pictures in ``<data.path>/<class>/*``, each a record. Inputs (C, H, W) in [0, 1].

    Needs data.path, classes, image_size, public_size, and public_path (same layout) or public_fraction. A picture is
    turned as its EXIF data says, converted to grey (C=1) or RGB (C=3), resized to (H, W) (bilinear, aspect ratio not
    kept), divided by 255. With public_fraction a picture's side is a hash of its class and file name. Files and
    folders whose name starts with a point are passed over.

    Raises:
        ConfigError: a declaration or folder is missing; at loading, an undeclared sub-folder, a file that is no
            readable picture or too large a one, or a link that leads out of the folder.
    """
    only_uses(config, ["path", "classes", "image_size", "task", "public_size", "public_path", "public_fraction"])
    names = needed("data.classes", config.classes, "and class names are not learnt from private rows")
    task = config.task or ("binary" if len(names) == 2 else "multiclass")
    if task == "regression":
        raise ConfigError("data.task", task, "folders name classes", "set data.task=multiclass or binary")
    classes = check_classes(config, task)
    for name in classes:
        if Path(name).name != name or name.startswith("."):
            raise ConfigError("data.classes", name, "cannot be the name of a sub-folder", "name classes as folders")
    shape = _shape(config)
    check_split(config)
    root = _root("data.path", needed("data.path", config.path, "so there are no pictures"), classes)
    public_root = None if config.public_path is None else _root("data.public_path", config.public_path, classes)
    info = SourceInfo(
        name="image_folder",
        task=task,
        input_shape=shape,
        num_classes=len(classes),
        public_size=needed("data.public_size", config.public_size, "and it is not read off private rows"),
        class_names=tuple(classes),
        public_split=describe_split(config, "pictures"),
    )

    def load() -> Splits:
        rows, files = _rows("data.path", root, classes, shape)
        if public_root is not None:
            splits = Splits(train=rows, public=_rows("data.public_path", public_root, classes, shape)[0])
        else:
            assert config.public_fraction is not None
            public = split_ids(files, config.public_fraction, seed)
            train, held = (rows.take(torch.from_numpy(np.flatnonzero(side))) for side in (~public, public))
            splits = Splits(train=train, public=held)
        if len(splits.train) < 2:
            raise ConfigError("data.path", root, f"leaves {len(splits.train)} training pictures", "give at least two")
        return splits

    return Source(info, load)


def _shape(config: DataConfig) -> tuple[int, int, int]:
    size = needed("data.image_size", config.image_size, "so pictures have no common shape")
    if len(size) != 3 or size[0] not in (1, 3) or not all(1 <= side <= 4096 for side in size[1:]):
        raise ConfigError(
            "data.image_size", size, "is not [1 or 3, height, width] with sides of 1 to 4096", "e.g. [3, 32, 32]"
        )
    return size[0], size[1], size[2]


def _root(field: str, value: str, classes: Sequence[str]) -> Path:
    root = existing(field, value, "folder")
    for name in classes:
        existing(field, root / name, "folder", "make one sub-folder for each of data.classes")
    return root


def _rows(field: str, root: Path, classes: Sequence[str], shape: tuple[int, int, int]) -> tuple[Rows, list[str]]:
    """Pictures by class, then by name, and each one's ``class/name``."""
    inside = root.resolve()
    for entry in sorted(root.iterdir()):
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in classes:
            raise ConfigError(field, entry, "is a sub-folder that data.classes does not name", "declare or move it")
    inputs: list[torch.Tensor] = []
    targets: list[int] = []
    files: list[str] = []
    for target, name in enumerate(classes):
        for file in sorted(path for path in (root / name).iterdir() if not path.name.startswith(".")):
            if not file.resolve().is_relative_to(inside):
                raise ConfigError(field, file, "is a link that leads out of the folder", "copy the picture itself")
            inputs.append(read_picture(file, shape, field))
            targets.append(target)
            files.append(f"{name}/{file.name}")
    if not inputs:
        raise ConfigError(field, root, "holds no picture", "put pictures into the sub-folders")
    return Rows(torch.stack(inputs), torch.tensor(targets)), files


def read_picture(file: Path, shape: tuple[int, int, int], field: str) -> torch.Tensor:
    """One picture as (C, H, W) float32 in [0, 1].

    Raises:
        ConfigError: the file is no picture of the known formats, is cut short, has 16 bits a channel, or
            unpacks to more pixels than Pillow's bomb guard allows (about 89 million).
    """
    from PIL import Image, ImageOps

    channels, height, width = shape
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as opened:
                if opened.mode.startswith(("I", "F")):  # PIL's conversion would cut values above 255 off
                    raise ConfigError(field, file, "has more than 8 bits a channel", "convert it to 8 bits")
                turned = ImageOps.exif_transpose(opened)
                picture = turned.convert("L" if channels == 1 else "RGB")
        pixels = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)
    except ConfigError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ConfigError(field, file, "has too many pixels", "shrink the picture first") from error
    except Exception as error:  # decoders fail in many ways on bytes they did not expect
        raise ConfigError(
            field, file, f"is not a readable picture ({type(error).__name__})", "repair or remove it"
        ) from error
    return torch.from_numpy(pixels).div(255.0).reshape(height, width, channels).permute(2, 0, 1).contiguous()
