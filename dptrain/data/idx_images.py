"""MNIST and Fashion-MNIST from their idx files, with headers believed only when the bytes agree."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch

from dptrain.config_data import DataConfig
from dptrain.data.settings import flag, only_uses
from dptrain.data.shipped import locate, read_shipped, shipped
from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.errors import ConfigError
from dptrain.registry import sources

TRAIN_ROWS = 60_000
SIDE = 28
CLASSES = 10
CLOTHES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


@sources.register("mnist")
def mnist(config: DataConfig, seed: int, verify: bool = True) -> Source:
    """Handwritten digits: 60,000 train, the official 10,000 test rows are public. Inputs (1, 28, 28) in [0, 1].

    Pixels are divided by 255, the format's own bound. ``verify=False`` accepts idx files other than the published.

    Raises:
        ConfigError: files missing; at loading, a file that is not the published one or is malformed.
    """
    return _source(config, "mnist", tuple("0123456789"), verify)


@sources.register("fashion_mnist")
def fashion_mnist(config: DataConfig, seed: int, verify: bool = True) -> Source:
    """Pictures of clothes; in shape, size, scaling and errors just like ``mnist``."""
    return _source(config, "fashion_mnist", CLOTHES, verify)


def _source(config: DataConfig, name: str, class_names: tuple[str, ...], verify: bool) -> Source:
    only_uses(config, ["path", "public_size"])
    flag(name, "verify", verify)
    files = locate(config, name)
    info = SourceInfo(
        name=name,
        task="multiclass",
        input_shape=(1, SIDE, SIDE),
        num_classes=CLASSES,
        public_size=config.public_size or TRAIN_ROWS,
        class_names=class_names,
        licence=shipped(name)["licence"],
        public_split="the official 10,000 test rows",
        is_public=True,
    )

    def read(stem: str) -> Rows:
        return _rows(files[f"{stem}-images-idx3-ubyte"], files[f"{stem}-labels-idx1-ubyte"], name, verify)

    return Source(info, lambda: Splits(train=read("train"), public=read("t10k")))


def _rows(images_path: Path, labels_path: Path, name: str, verify: bool) -> Rows:
    images = parse_idx(read_shipped(images_path, name, verify), 3, images_path)  # (N, H, W)
    labels = parse_idx(read_shipped(labels_path, name, verify), 1, labels_path)  # (N,)
    if images.shape[1:] != (SIDE, SIDE):
        raise _refusal(images_path, f"pictures are {images.shape[1]} by {images.shape[2]}, not {SIDE} by {SIDE}")
    if len(labels) != len(images):
        raise _refusal(labels_path, f"holds {len(labels)} labels for {len(images)} pictures")
    wrong = np.flatnonzero(labels >= CLASSES)
    if len(wrong):
        raise _refusal(labels_path, f"label of row {wrong[0] + 1} is not in 0 to {CLASSES - 1}")
    inputs = torch.from_numpy(images.astype(np.float32)).div_(255.0).unsqueeze(1)
    return Rows(inputs, torch.from_numpy(labels.astype(np.int64)))


def parse_idx(content: bytes, dimensions: int, path: Path) -> np.ndarray:
    """The array in an idx file of unsigned bytes.

    Format: two zero bytes, the type code (8: unsigned byte), the number of dimensions, each dimension as a
    big-endian 32-bit integer, then the values, last dimension fastest.

    Args:
        content: the whole unpacked file.
        dimensions: how many dimensions it must have.
        path: for errors.

    Raises:
        ConfigError: magic, number of dimensions or number of bytes is not what it must be, or there is no row.
    """
    head = 4 + 4 * dimensions
    if len(content) < head:
        raise _refusal(path, f"ends inside its header ({len(content)} bytes)")
    if content[:4] != bytes([0, 0, 8, dimensions]):
        raise _refusal(path, f"does not start with the mark of {dimensions}-dimensional idx bytes")
    shape = struct.unpack(f">{dimensions}I", content[4:head])
    # Python integers: a lying header cannot overflow the product.
    promised = 1
    for extent in shape:
        promised *= extent
    if promised == 0:
        raise _refusal(path, "holds no row")
    if len(content) - head != promised:
        raise _refusal(path, f"promises {promised} values in its header and holds {len(content) - head}")
    return np.frombuffer(content, dtype=np.uint8, offset=head).reshape(shape)


def _refusal(path: Path, problem: str) -> ConfigError:
    return ConfigError("data.path", path, problem, "fetch the file again, or give a well-formed idx file")
