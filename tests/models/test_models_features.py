"""Feature maps treat rows alone; the cache is private, whole, and never trusted when torn."""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dptrain.errors import ConfigError
from dptrain.models.features import CHUNK, cached_features
from dptrain.registry import features


class Doubling:
    calls = 0
    version = "1"

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        self.output_shape = input_shape

    def __call__(self, inputs: Tensor) -> Tensor:
        Doubling.calls += 1
        assert len(inputs) <= CHUNK
        return 2 * inputs


@features.register("test_doubling")
def doubling(input_shape: tuple[int, ...], unused: int = 0) -> Doubling:
    return Doubling(input_shape)


@features.register("test_lying")
def lying(input_shape: tuple[int, ...]) -> Doubling:
    made = Doubling(input_shape)
    made.output_shape = (99,)
    return made


@pytest.fixture
def fresh() -> Iterator[None]:
    Doubling.calls, Doubling.version = 0, "1"
    yield
    Doubling.version = "1"


def test_scatter_gives_eighty_one_coefficients_normalised_within_the_row() -> None:
    pytest.importorskip("kymatio")
    rows = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    mapped = cached_features("scatter", rows)
    assert mapped.shape == (5, 81, 7, 7)
    assert features.build("scatter", (1, 28, 28)).output_shape == (81, 7, 7)
    groups = mapped.reshape(5, 27, -1)
    torch.testing.assert_close(groups.mean(-1), torch.zeros(5, 27), rtol=0, atol=1e-4)
    # One row's features do not depend on the company it is in.
    torch.testing.assert_close(cached_features("scatter", rows[3:4])[0], mapped[3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [((3, 32, 32), {}, (243, 8, 8)), ((1, 8, 8), {}, (81, 2, 2)), ((1, 9, 12), {"J": 1, "groups": 9}, (9, 4, 6))],
)
def test_scatter_declares_the_shape_it_gives(shape: Any, options: dict[str, int], expected: Any) -> None:
    pytest.importorskip("kymatio")
    assert features.build("scatter", shape, options=options).output_shape == expected
    assert cached_features("scatter", torch.rand(2, *shape), None, options).shape == (2, *expected)


@pytest.mark.parametrize(
    ("shape", "options", "field"),
    [
        ((64,), {}, "model.features"),
        ((1, 3, 8), {}, "model.features"),
        ((1, 8, 8), {"J": 0}, "features.options.J"),
        ((1, 8, 8), {"J": 2.0}, "features.options.J"),
        ((1, 8, 8), {"L": "8"}, "features.options.L"),
        ((1, 8, 8), {"groups": 10}, "features.options.groups"),
        ((1, 8, 8), {"angle": 8}, "features.options.angle"),
    ],
)
def test_wrong_options_and_shapes_are_refused(shape: Any, options: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        features.build("scatter", shape, options=options)
    assert caught.value.field == field


def test_a_missing_kymatio_is_named_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kymatio", None)
    with pytest.raises(ConfigError, match=r"pip install 'dptrain\[scatter\]'"):
        features.build("scatter", (1, 28, 28))


def test_none_is_the_identity() -> None:
    rows = torch.rand(3, 4)
    assert cached_features("none", rows) is rows


def test_the_cache_is_used_and_readable_by_its_owner_alone(tmp_path: Path, fresh: None) -> None:
    rows = torch.rand(CHUNK + 7, 3)
    cache = tmp_path / "deep" / "cache"
    first = cached_features("test_doubling", rows, cache)
    calls = Doubling.calls
    assert calls == 2
    again = cached_features("test_doubling", rows, cache)
    assert Doubling.calls == calls
    assert torch.equal(first, 2 * rows) and torch.equal(again, first)
    (file,) = cache.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_rows_options_and_version_are_in_the_key(tmp_path: Path, fresh: None) -> None:
    rows = torch.rand(4, 3)
    cached_features("test_doubling", rows, tmp_path)
    other = rows.clone()
    other[2, 1] += 1
    assert torch.equal(cached_features("test_doubling", other, tmp_path), 2 * other)
    cached_features("test_doubling", rows, tmp_path, {"unused": 1})
    cached_features("test_doubling", rows.reshape(3, 4), tmp_path)
    Doubling.version = "2"
    cached_features("test_doubling", rows, tmp_path)
    assert len(list(tmp_path.iterdir())) == Doubling.calls == 5


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty", "other"])
def test_a_damaged_cache_is_computed_anew(tmp_path: Path, fresh: None, damage: str) -> None:
    rows = torch.rand(4, 3)
    cached_features("test_doubling", rows, tmp_path)
    (file,) = tmp_path.iterdir()
    held = file.read_bytes()
    changed = {
        "torn": held[: len(held) // 2],
        "flipped": held[:-1] + bytes([held[-1] ^ 1]),
        "empty": b"",
        "other": b"not a safetensors file at all",
    }[damage]
    file.write_bytes(changed)
    assert torch.equal(cached_features("test_doubling", rows, tmp_path), 2 * rows)
    assert Doubling.calls == 2
    assert file.read_bytes() == held


def test_a_map_that_breaks_its_word_on_shape_is_refused() -> None:
    with pytest.raises(ConfigError, match="gave shape"):
        cached_features("test_lying", torch.rand(4, 3))


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, fresh: None) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(ConfigError, match="cannot be written"):
        cached_features("test_doubling", torch.rand(4, 3), blocked / "cache")


def test_no_rows_give_no_rows(fresh: None) -> None:
    assert cached_features("test_doubling", torch.rand(0, 3)).shape == (0, 3)
