"""idx files are believed only when header, bytes and published digest agree."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dptrain.config_data import DataConfig
from dptrain.data.idx_images import parse_idx
from dptrain.data.source import Splits
from dptrain.errors import ConfigError
from dptrain.registry import sources

REAL = Path(__file__).resolve().parents[2] / "data"


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def small_set(folder: Path, packed: bool = False) -> Path:
    """12 training and 5 test pictures of the right shape."""
    folder.mkdir(exist_ok=True)
    random = np.random.RandomState(0)
    for stem, rows in (("train", 12), ("t10k", 5)):
        images = random.randint(0, 256, (rows, 28, 28)).astype(np.uint8)
        images[0, 0, :2] = 0, 255
        contents = {
            f"{stem}-images-idx3-ubyte": images,
            f"{stem}-labels-idx1-ubyte": np.arange(rows, dtype=np.uint8) % 10,
        }
        for name, values in contents.items():
            content = gzip.compress(idx(values)) if packed else idx(values)
            (folder / (f"{name}.gz" if packed else name)).write_bytes(content)
    return folder


def load(folder: Path, name: str = "mnist", **options: object) -> Splits:
    config = DataConfig(name=name, path=str(folder), public_size=12)
    return sources.build(name, config, 0, options={"verify": False, **options}).load()


@pytest.mark.parametrize("packed", [False, True])
def test_a_well_formed_set_is_read(tmp_path: Path, packed: bool) -> None:
    splits = load(small_set(tmp_path / "set", packed))
    assert splits.train.inputs.shape == (12, 1, 28, 28) and splits.public.inputs.shape == (5, 1, 28, 28)
    assert splits.train.inputs[0, 0, 0, :2].tolist() == [0.0, 1.0]
    assert splits.train.inputs.min() >= 0.0 and splits.train.inputs.max() <= 1.0
    assert splits.train.targets.tolist() == [*range(10), 0, 1] and splits.train.targets.dtype == torch.int64


def test_files_that_are_not_the_published_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.path=.*SHA-256 differs.*fetch_data\.sh mnist"):
        load(small_set(tmp_path / "set"), verify=True)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "adult"])
def test_missing_files_are_refused_with_the_way_to_get_them(tmp_path: Path, name: str) -> None:
    for config in (DataConfig(name=name, path=str(tmp_path)), DataConfig(name=name, path=str(tmp_path / "none"))):
        with pytest.raises(ConfigError, match=rf"data\.path=.*bash scripts/fetch_data\.sh {name}"):
            sources.build(name, config, 0)


def test_settings_without_a_meaning_are_refused(tmp_path: Path) -> None:
    given = DataConfig(name="mnist", path=str(small_set(tmp_path)))
    for config in (replace(given, label="x"), replace(given, public_fraction=0.5), replace(given, unit_column="who")):
        with pytest.raises(ConfigError, match="makes no use of it"):
            sources.build("mnist", config, 0)
    with pytest.raises(ConfigError, match=r"data\.options\.verify=maybe"):
        sources.build("mnist", DataConfig(name="mnist", path=str(tmp_path)), 0, options={"verify": "maybe"})


GOOD = idx(np.zeros((4, 3, 2), dtype=np.uint8))

MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "half a header": GOOD[:10],
    "truncated": GOOD[:-1],
    "one byte too many": GOOD + b"\0",
    "wrong magic": b"\x01" + GOOD[1:],
    "wrong type": bytes([0, 0, 13, 3]) + GOOD[4:],
    "wrong number of dimensions": idx(np.zeros(24, dtype=np.uint8)),
    "no rows": idx(np.zeros((0, 3, 2), dtype=np.uint8)),
    "lying count": bytes([0, 0, 8, 3]) + struct.pack(">3I", 5, 3, 2) + GOOD[16:],
    "count that overflows": bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1) + GOOD[16:],
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_idx_is_refused_and_the_file_named(name: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.path=some-file"):
        parse_idx(MALFORMED[name], 3, Path("some-file"))
    assert parse_idx(GOOD, 3, Path("some-file")).shape == (4, 3, 2)


def _truncate(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])


def _junk(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(b"\xff" * 300)


def _fewer_labels(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(11, dtype=np.uint8))))


def _strange_label(folder: Path) -> None:
    labels = np.array([0, 1, 10] + [0] * 9, dtype=np.uint8)
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))


def _other_size(folder: Path) -> None:
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros((5, 27, 28), dtype=np.uint8))))


SPOILT: list[tuple[Callable[[Path], None], str]] = [
    (_truncate, r"train-images.*cannot be read"),
    (_junk, r"train-labels.*cannot be read"),
    (_fewer_labels, r"train-labels.*11 labels for 12 pictures"),
    (_strange_label, r"train-labels.*label of row 3"),
    (_other_size, r"t10k-images.*27 by 28"),
]


@pytest.mark.parametrize(("spoil", "problem"), SPOILT)
def test_a_spoilt_set_is_refused_and_the_file_named(
    tmp_path: Path, spoil: Callable[[Path], None], problem: str
) -> None:
    folder = small_set(tmp_path / "set", packed=True)
    spoil(folder)
    with pytest.raises(ConfigError, match=problem):
        load(folder)


@pytest.mark.parametrize(("name", "mean"), [("mnist", 0.1307), ("fashion_mnist", 0.2860)])
def test_the_published_set(name: str, mean: float) -> None:
    if not (REAL / name).is_dir():
        pytest.skip(f"data/{name} is not here; bash scripts/fetch_data.sh {name}")
    source = sources.build(name, DataConfig(name=name, path=str(REAL / name)), 0)
    splits = source.load()
    assert len(splits.train) == source.info.public_size == 60_000 and len(splits.public) == 10_000
    assert float(splits.train.inputs.mean()) == pytest.approx(mean, abs=5e-5)  # the mean everybody normalises by
    assert sorted(set(splits.public.targets.tolist())) == list(range(10))
