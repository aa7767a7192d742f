"""Tokenising: a row depends on its text alone, nothing is longer than T, and what is no tokenizer is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dptrain.config_text import TextConfig
from dptrain.data.tokenise import BYTES_VOCABULARY, open_tokeniser
from dptrain.errors import ConfigError

tokenizers = pytest.importorskip("tokenizers")
WORDS = ["<unk>", "<s>", "</s>", "the", "cat", "sat", "on", "mat"]


def save_words(path: Path, words: list[str] = WORDS) -> Path:
    """A tokenizer of whole words that begins a row with 1 and ends it with 2."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if "<s>" in words:
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", words.index("<s>")), ("</s>", words.index("</s>"))]
        )
    path.mkdir(parents=True, exist_ok=True)
    made.save(str(path / "tokenizer.json"))
    return path


def test_words_become_ids_with_marks_and_padding(tmp_path: Path) -> None:
    folder = save_words(tmp_path / "model", [*WORDS, "[PAD]"])
    for given_path in (folder, folder / "tokenizer.json"):
        made = open_tokeniser(TextConfig(tokenizer=str(given_path), max_length=6))
        assert (made.vocabulary, made.pad, made.length) == (9, 8, 6)
        ids, cut = made.rows(["the cat", "the cat sat on the mat", "dog", ""])
        assert ids.tolist() == [[1, 3, 4, 2, 8, 8], [1, 3, 4, 5, 6, 2], [1, 0, 2, 8, 8, 8], [1, 2, 8, 8, 8, 8]]
        assert cut.tolist() == [False, True, False, False]


def test_the_file_says_what_pads_else_the_setting_does(tmp_path: Path) -> None:
    ends = save_words(tmp_path / "ends")
    assert open_tokeniser(TextConfig(tokenizer=str(ends))).pad == WORDS.index("</s>")
    assert open_tokeniser(TextConfig(tokenizer=str(ends), pad=0)).pad == 0
    nothing = str(save_words(tmp_path / "nothing", ["<unk>", "cat"]))
    with pytest.raises(ConfigError, match=r"data\.text\.pad=null: tokenizer\.json names no padding token"):
        open_tokeniser(TextConfig(tokenizer=nothing))
    with pytest.raises(ConfigError, match="outside the tokenizer's 2 ids"):
        open_tokeniser(TextConfig(tokenizer=nothing, pad=2))


def test_padding_and_cutting_of_the_file_are_not_taken_over(tmp_path: Path) -> None:
    folder = save_words(tmp_path / "model", [*WORDS, "[PAD]"])
    held = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    held.enable_padding(pad_id=8, pad_token="[PAD]", length=128)
    held.enable_truncation(3)
    held.save(str(folder / "tokenizer.json"))
    ids, cut = open_tokeniser(TextConfig(tokenizer=str(folder), max_length=5)).rows(["the cat sat"])
    assert ids.tolist() == [[1, 3, 4, 5, 2]] and not cut.any()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=6), st.integers(2, 12))
def test_bytes_keep_what_fits(texts: list[str], length: int) -> None:
    made = open_tokeniser(TextConfig(tokenizer="bytes", max_length=length))
    ids, cut = made.rows(texts)
    assert ids.shape == (len(texts), length) and 0 <= int(ids.min()) <= int(ids.max()) < BYTES_VOCABULARY
    for row, text in enumerate(texts):
        own = [i for i in ids[row].tolist() if i != made.pad]
        raw = text.encode()
        assert own[0] == 1 and own[-1] == 2 and bytes(i - 3 for i in own[1:-1]) == raw[: length - 2]
        assert bool(cut[row]) == (len(raw) > length - 2)
        assert torch.equal(made.rows([text])[0][0], ids[row])


def test_two_digests_differ_where_ids_may(tmp_path: Path) -> None:
    one, other = save_words(tmp_path / "one"), save_words(tmp_path / "other", [*WORDS, "dog"])
    made = [TextConfig(tokenizer=str(one)), TextConfig(tokenizer=str(one), max_length=64),
            TextConfig(tokenizer=str(one), pad=0), TextConfig(tokenizer=str(other)), TextConfig(tokenizer="bytes"),
            TextConfig(tokenizer="bytes", max_length=64), TextConfig(tokenizer="bytes", pad=5)]  # fmt: skip
    assert len({open_tokeniser(each).digest for each in made}) == len(made)
    assert open_tokeniser(made[0]).digest == open_tokeniser(TextConfig(tokenizer=str(one))).digest


def test_what_is_no_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.json").write_text('{"version": "1.0", "model": {')
    cases = {
        None: "is needed by data that is text",
        str(tmp_path / "empty"): r"holds no tokenizer\.json",
        str(tmp_path / "none"): "no such file or folder",
        str(tmp_path / "broken.json"): "is no tokenizer",
    }
    for path, why in cases.items():
        with pytest.raises(ConfigError, match=why) as refusal:
            open_tokeniser(TextConfig(tokenizer=path))
        assert "\n" not in str(refusal.value)
    with pytest.raises(ConfigError, match="no room for text"):
        open_tokeniser(TextConfig(tokenizer=str(three_marks(tmp_path / "three")), max_length=2))


def three_marks(path: Path) -> Path:
    """A tokenizer whose own marks are three."""
    made = tokenizers.Tokenizer.from_file(str(save_words(path) / "tokenizer.json"))
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> <s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    made.save(str(path / "tokenizer.json"))
    return path


@pytest.mark.parametrize("setting", [{"max_length": 1}, {"max_length": 9000}, {"pad": -1}])
def test_settings_have_ranges(setting: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"data\.text\."):
        TextConfig(**setting)  # pyright: ignore[reportArgumentType]
