"""The cache of token ids: tokenised once, private to its owner, made anew where it is damaged."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dptrain.config_text import TextConfig
from dptrain.data.token_cache import cached_tokens
from dptrain.data.tokenise import Tokeniser, open_tokeniser
from dptrain.errors import ConfigError

TEXTS = ["one", "two words", ""]


def counting() -> tuple[Tokeniser, list[int]]:
    """A tokenizer that notes how many texts it was given."""
    plain, asked = open_tokeniser(TextConfig(tokenizer="bytes", max_length=8)), []

    def encode(texts: Sequence[str]) -> list[tuple[list[int], bool]]:
        asked.append(len(texts))
        return plain.encode(texts)

    return replace(plain, encode=encode), asked


def test_texts_are_tokenised_once(tmp_path: Path) -> None:
    made, asked = counting()
    first = cached_tokens(TEXTS, made, tmp_path / "cache")
    again = cached_tokens(TEXTS, made, tmp_path / "cache")
    assert asked == [3]
    for one, other, fresh in zip(first, again, made.rows(TEXTS), strict=True):
        assert torch.equal(one, other) and torch.equal(one, fresh) and one.dtype == other.dtype
    assert first[1].tolist() == [False, True, False]


def test_other_texts_settings_and_borders_are_other_files(tmp_path: Path) -> None:
    made, asked = counting()
    for texts in (TEXTS, ["onetwo words", "", ""], ["on", "etwo words", ""]):
        cached_tokens(texts, made, tmp_path)
    cached_tokens(TEXTS, replace(made, digest="another"), tmp_path)
    assert asked == [3, 3, 3, 3] and len(list(tmp_path.iterdir())) == 4


def test_only_the_owner_reads_it(tmp_path: Path) -> None:
    cached_tokens(TEXTS, counting()[0], tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("harm", ["torn", "one byte", "empty", "swapped"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, harm: str) -> None:
    made, asked = counting()
    right = cached_tokens(TEXTS, made, tmp_path)[0]
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    if harm == "swapped":
        cached_tokens(["x", "y", "z"], made, tmp_path / "other")
        content = next((tmp_path / "other").iterdir()).read_bytes()
        file.write_bytes(content[:-1] + b"\1")
    else:
        file.write_bytes({"torn": content[:-5], "one byte": content[:-1] + b"\7", "empty": b""}[harm])
    asked.clear()
    assert torch.equal(cached_tokens(TEXTS, made, tmp_path)[0], right) and asked == [3]
    asked.clear()
    assert torch.equal(cached_tokens(TEXTS, made, tmp_path)[0], right) and asked == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ConfigError, match="cannot be written"):
        cached_tokens(TEXTS, counting()[0], tmp_path / "cache")
