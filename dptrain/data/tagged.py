"""A user's own texts with a label a word: JSON lines, parquet, or a saved data set of lists; classes are declared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dptrain.config_data import DataConfig
from dptrain.data.settings import check_split, existing, needed, only_uses
from dptrain.data.source import IGNORED, TOKENS, Rows, Source, SourceInfo, Splits
from dptrain.data.split import split_ids, split_positions
from dptrain.data.table import check_classes, describe_split
from dptrain.data.text import read_cells, unit_id
from dptrain.data.tokenise import open_tokeniser
from dptrain.data.words import WordTokeniser, open_word_tokeniser
from dptrain.errors import ConfigError
from dptrain.registry import sources

ENDINGS = (".jsonl", ".ndjson", ".parquet")


@dataclass(frozen=True)
class Tagged:
    """Texts in file order, in words, with a class a word."""

    words: list[list[str]]
    tags: list[list[int]]
    owner: list[str] | None = None
    """Whose each is; None where nobody says."""

    def __len__(self) -> int:
        return len(self.words)


@sources.register("tagged")
def tagged(config: DataConfig, seed: int) -> Source:
    """Rows of words as token ids (T,), targets (T,): a word's class at its first token, IGNORED at every other place.

    Needs data.path (.jsonl, .ndjson, .parquet, or a folder of a saved data set), text.column (a list of words),
    text.tokenizer, label (a list of as many class names), classes, public_size, and public_path or public_fraction. One
    unit a row, or a user by data.unit_column. Words behind the T-th token are cut off with their labels.

    Raises:
        ConfigError: a declaration is missing or contradicts itself, a file is missing; at loading, a row's words or
            tags are no list of texts, differ in number, or name a class that was not declared (row named, content not).
    """
    used = ["path", "public_path", "public_fraction", "public_size", "text", "unit_column", "label", "classes"]
    only_uses(config, used + ([] if config.unit_column is None else ["unit_rows"]))
    needed("data.text.column", config.text.column, "so there are no words")
    needed("data.label", config.label, "so there are no tags")
    needed("data.classes", config.classes, "and class names are not learnt from private rows")
    classes = check_classes(config, "multiclass")
    size = needed("data.public_size", config.public_size, "and it is not read off private rows")
    names = [config.text.column, config.label, config.unit_column]
    if len({name for name in names if name is not None}) < sum(name is not None for name in names):
        raise ConfigError("data.label", config.label, "is another column too", "name three different columns")
    check_split(config)
    path = _place("data.path", needed("data.path", config.path, "so there are no texts"))
    public_path = None if config.public_path is None else _place("data.public_path", config.public_path)
    facts, tokeniser = open_tokeniser(config.text), open_word_tokeniser(config.text)
    info = SourceInfo(
        name=config.name,
        task=TOKENS,
        input_shape=(facts.length,),
        num_classes=len(classes),
        public_size=size,
        class_names=tuple(classes),
        unit="record" if config.unit_column is None else "user",
        public_split=describe_split(config, "rows"),
        vocabulary=facts.vocabulary,
        pad=facts.pad,
        unit_rows=None if config.unit_rows is None else {pair[0]: pair[1] for pair in config.unit_rows},
    )

    def load() -> Splits:
        private = _read(config, "data.path", path, classes)
        if len(private) < 2:
            raise ConfigError("data.path", path, f"has {len(private)} rows", "give a file with rows")
        rows, cut = to_rows(private, tokeniser, facts.pad)
        if public_path is not None:
            others = _read(config, "data.public_path", public_path, classes)
            if set(private.owner or []) & set(others.owner or []):
                problem = f"shares values of {config.unit_column} with the private rows"
                raise ConfigError("data.public_path", public_path, problem, "keep all rows of a unit on one side")
            return _splits(rows, to_rows(others, tokeniser, facts.pad)[0], cut)
        public = _public(config, private, seed)
        train, held = (torch.from_numpy(np.flatnonzero(side)) for side in (~public, public))
        if len(train) < 2:
            raise ConfigError("data.path", config.path, f"leaves {len(train)} training rows", "give at least two")
        return _splits(rows.take(train), rows.take(held), cut[train])

    return Source(info, load)


def to_rows(texts: Tagged, tokeniser: WordTokeniser, pad: int) -> tuple[Rows, torch.Tensor]:
    """Ids and targets (N, T), units in the order of their first row; and which rows lost words (N,)."""
    ids = torch.full((len(texts), tokeniser.length), pad, dtype=torch.int64)
    targets = torch.full((len(texts), tokeniser.length), IGNORED, dtype=torch.int64)
    cut = torch.zeros(len(texts), dtype=torch.bool)
    for row, (found, word_of) in enumerate(tokeniser.encode(texts.words)):
        ids[row, : len(found)] = torch.tensor(found, dtype=torch.int64)
        seen: set[int] = set()
        for place, word in enumerate(word_of):
            if word is not None and word not in seen:
                seen.add(word)
                targets[row, place] = texts.tags[row][word]
        cut[row] = len(seen) < len(texts.words[row])
    if texts.owner is None:
        return Rows(ids, targets), cut
    import pandas as pd

    unit = torch.from_numpy(pd.factorize(np.array(texts.owner, dtype=object))[0].astype(np.int64))
    return Rows(ids, targets, unit), cut


def _splits(train: Rows, public: Rows, cut: torch.Tensor) -> Splits:
    counts: Mapping[str, int | float] = {"rows": len(train), "rows_cut_off": int(cut.sum())}
    return Splits(train=train, public=public, found={"text": counts})


def _public(config: DataConfig, texts: Tagged, seed: int) -> np.ndarray:
    fraction = config.public_fraction
    assert fraction is not None
    if texts.owner is not None:
        return split_ids(texts.owner, fraction, seed)
    return split_positions(len(texts), fraction, seed)


def _place(field: str, given: str) -> Path:
    path = Path(given).expanduser()
    if path.is_dir():
        return path
    existing(field, given, "file")
    if path.suffix.lower() not in ENDINGS:
        remedy = f"give a file ending in {', '.join(ENDINGS)}, or the folder of a saved data set"
        raise ConfigError(field, given, "is of no kind that holds lists of words", remedy)
    return path


def _read(config: DataConfig, field: str, path: Path, classes: Sequence[str]) -> Tagged:
    column, label = str(config.text.column), str(config.label)
    names = [column, label, *([] if config.unit_column is None else [config.unit_column])]
    cells = read_cells(field, path, names, column)
    known = {name: place for place, name in enumerate(classes)}
    words = [_words(value, row, column) for row, value in enumerate(cells[column], start=1)]
    tags = [_tags(value, row, label, known) for row, value in enumerate(cells[label], start=1)]
    for row, (one, other) in enumerate(zip(words, tags, strict=True), start=1):
        if len(one) != len(other):
            raise ConfigError(
                "data.label", label, f"row {row} has {len(other)} tags for {len(one)} words", "correct it"
            )
    owner = None
    if config.unit_column is not None:
        owner = [
            unit_id(value, row, config.unit_column) for row, value in enumerate(cells[config.unit_column], start=1)
        ]
    return Tagged(words, tags, owner)


def _words(value: Any, row: int, column: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(word, str) and word.strip() for word in value):
        raise ConfigError("data.text.column", column, f"row {row} is no list of words", 'give one: ["Anna", "came"]')
    try:
        "".join(value).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError("data.text.column", column, f"row {row} is no valid Unicode", "correct the row") from error
    return value


def _tags(value: Any, row: int, label: str, known: Mapping[str, int]) -> list[int]:
    if not isinstance(value, list):
        raise ConfigError("data.label", label, f"row {row} is no list of tags", 'give one: ["B-PER", "O"]')
    if not all(isinstance(tag, str) and tag in known for tag in value):
        remedy = "declare the class or correct the row"
        raise ConfigError("data.label", label, f"row {row} has a tag that is none of data.classes", remedy)
    return [known[tag] for tag in value]
