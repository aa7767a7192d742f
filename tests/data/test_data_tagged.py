"""data=tagged: a label at a word's first token; bad rows are refused in one line that quotes none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch

from dptrain.config_data import DataConfig
from dptrain.config_text import TextConfig
from dptrain.data.source import IGNORED, Source
from dptrain.errors import ConfigError
from dptrain.registry import sources

ROWS = [{"tokens": ["Anna", "saw", f"{i}"], "tags": ["B-PER", "O", "O"], "who": i // 2} for i in range(10)]
SECRET = "SECRETCELL"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def source(path: str | Path, text: dict[str, Any] | None = None, **settings: Any) -> Source:
    given: dict[str, Any] = {"label": "tags", "classes": ["O", "B-PER"], "public_fraction": 0.3, "public_size": 7}
    given |= {"text": TextConfig(**{"column": "tokens", "tokenizer": "bytes", "max_length": 20, **(text or {})})}
    given |= settings
    return sources.build("tagged", DataConfig(name="tagged", path=str(path), **given), 0)


def lines(rows: list[Any], name: str = "rows.jsonl") -> Path:
    Path(name).write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return Path(name)


def test_a_word_has_its_label_at_its_first_token() -> None:
    made = source(lines(ROWS))
    info = made.info
    assert (info.task, info.input_shape, info.num_outputs, info.num_classes) == ("token_classification", (20,), 40, 2)
    splits = made.load()
    row, tags = splits.train.inputs[0].tolist(), splits.train.targets[0].tolist()
    text = bytes(i - 3 if i > 2 else ord("_") for i in row).decode()
    assert text.startswith("_Anna saw ") and len(text) == 20
    assert {place: tag for place, tag in enumerate(tags) if tag != IGNORED} == {1: 1, 6: 0, 10: 0}
    assert splits.found == {"text": {"rows": len(splits.train), "rows_cut_off": 0}}


def test_words_behind_the_end_are_cut_with_their_labels() -> None:
    splits = source(lines(ROWS), {"max_length": 8}).load()
    assert (splits.train.targets[:, 7:] == IGNORED).all() and (splits.train.targets != IGNORED).sum(1).eq(2).all()
    assert splits.found is not None and splits.found["text"]["rows_cut_off"] == len(splits.train)


def test_parquet_gives_the_same_rows_and_users_stay_together() -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), "rows.parquet")
    one = source("rows.parquet", unit_column="who").load()
    other = source(lines(ROWS), unit_column="who").load()
    assert torch.equal(one.train.inputs, other.train.inputs) and torch.equal(one.train.targets, other.train.targets)
    assert one.train.num_units + one.public.num_units == 5 and len(one.train) == 2 * one.train.num_units


def test_a_tokenizer_of_pieces(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    pieces = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "An": 4, "##na": 5, "saw": 6}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(pieces, unk_token="[UNK]"))
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    splits = source(lines(ROWS), {"tokenizer": str(tmp_path), "max_length": 8}).load()
    assert splits.train.inputs[0].tolist() == [1, 4, 5, 6, 3, 2, 0, 0]
    free = IGNORED
    assert splits.train.targets[0].tolist() == [free, 1, free, 0, 0, free, free, free]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tokens": SECRET}, r"data\.text\.column=tokens: row 3 is no list of words"),
        ({"tokens": [SECRET, 7, "x"]}, "row 3 is no list of words"),
        ({"tokens": [SECRET, " ", "x"]}, "row 3 is no list of words"),
        ({"tokens": None}, "row 3 is no list of words"),
        ({"tokens": ["\ud800", "a", "b"]}, "row 3 is no valid Unicode"),
        ({"tags": None}, r"data\.label=tags: row 3 is no list of tags"),
        ({"tags": ["O", "O"]}, "row 3 has 2 tags for 3 words"),
        ({"tags": ["O", SECRET, "O"]}, r"row 3 has a tag that is none of data\.classes"),
        ({"who": None}, r"data\.unit_column=who: row 3 belongs to nobody"),
    ],
)
def test_bad_rows_are_refused_without_quoting_them(change: dict[str, Any], why: str) -> None:
    rows = [*ROWS[:2], {**ROWS[2], **change}, *ROWS[3:]]
    with pytest.raises(ConfigError, match=why) as refusal:
        source(lines(rows), unit_column="who").load()
    assert SECRET not in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"classes": None}, r"data\.classes.*not set"),
        ({"label": None}, r"data\.label.*not set"),
        ({"label": "tokens"}, "is another column too"),
        ({"public_size": None}, r"data\.public_size.*not set"),
        ({"text": {"tokenizer": None}}, r"data\.text\.tokenizer.*is needed"),
        ({"task": "multiclass"}, "makes no use of it"),
        ({"public_fraction": None}, "exactly one of it"),
    ],
)
def test_declarations_are_checked_before_a_row_is_read(settings: dict[str, Any], why: str) -> None:
    Path("rows.jsonl").write_bytes(b"no row of this is read")
    with pytest.raises(ConfigError, match=why):
        source("rows.jsonl", settings.pop("text", None), **settings)
    Path("rows.csv").write_text("tokens,tags\n")
    with pytest.raises(ConfigError, match="no kind that holds lists"):
        source("rows.csv")
