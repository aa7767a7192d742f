"""From labelled texts to a source: facts, tokens, which rows are public, whose rows are whose."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dptrain.config_data import DataConfig
from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.data.split import split_ids, split_positions, split_share
from dptrain.data.token_cache import cached_tokens
from dptrain.data.tokenise import Tokeniser, open_tokeniser
from dptrain.errors import ConfigError
from dptrain.run_folder import CACHE

LANGUAGE = "language"
"""The task of telling the next token: a row's target is how many tokens there are to tell."""


@dataclass(frozen=True)
class Texts:
    """Rows of text in file order."""

    text: list[str]
    target: list[int]
    """Class of each; empty for the task language."""
    owner: list[str] | None = None
    """Whose each is; None where nobody says."""

    def __len__(self) -> int:
        return len(self.text)

    def take(self, places: Sequence[int]) -> Texts:
        """The rows at ``places``, in that order."""
        owner = None if self.owner is None else [self.owner[i] for i in places]
        return Texts([self.text[i] for i in places], [self.target[i] for i in places if self.target], owner)


def normalised(text: str) -> str:
    """A text for telling repeats: lower case, every stretch of white space one blank, none at the ends."""
    return " ".join(text.split()).casefold()


def without_repeats(texts: Texts) -> Texts:
    """The first of all rows whose normalised text is the same: labels are not looked at.

    Where rows have owners, repeats count within one owner only, so that no owner's rows decide which of another's stay.

    Guarantee: without owners the unit that is left is a distinct text: taking all its copies away changes no other row.
    """
    owners = texts.owner or [""] * len(texts)
    first: dict[tuple[str, str], int] = {}
    for place, (text, owner) in enumerate(zip(texts.text, owners, strict=True)):
        first.setdefault((owner, normalised(text)), place)
    return texts.take(list(first.values()))


def public_rows(texts: Texts, fraction: float, seed: int, declared: bool) -> np.ndarray:
    """(N,) bool: which rows of a shipped set are public.

    All rows of an owner, or of a normalised text where rows have none, go the same way. Where the size is not declared,
    exactly round(units * fraction) of them are public, as fits adjacency zero_out; where it is, each goes by a
    hash of its own, as add_remove needs (and add_remove asks for a declared size).
    """
    ids = texts.owner or [hashlib.sha256(normalised(text).encode()).hexdigest() for text in texts.text]
    return split_ids(ids, fraction, seed) if declared else split_share(ids, fraction, seed)


def to_rows(texts: Texts, tokeniser: Tokeniser, task: str) -> tuple[Rows, Tensor]:
    """Tokenised rows with their targets and units, and which were cut off (N,). Unit ids count owners as first seen."""
    ids, cut = cached_tokens(texts.text, tokeniser, CACHE)
    if task == LANGUAGE:
        targets = (ids[:, 1:] != tokeniser.pad).sum(dim=1)
    else:
        targets = torch.tensor(texts.target, dtype=torch.int64)
    if texts.owner is None:
        return Rows(ids, targets), cut
    import pandas as pd

    unit = torch.from_numpy(pd.factorize(np.array(texts.owner, dtype=object))[0].astype(np.int64))
    return Rows(ids, targets, unit), cut


def text_source(
    config: DataConfig,
    *,
    task: str,
    classes: Sequence[str],
    public_size: int,
    read: Callable[[], Texts],
    mask: Callable[[Texts], np.ndarray] | None = None,
    read_public: Callable[[], Texts] | None = None,
    unit: str = "record",
    licence: str = "not stated",
    public_split: str,
    is_public: bool = False,
    unit_rows: dict[int, int] | None = None,
) -> Source:
    """A source of texts. Building it reads the tokenizer and no row.

    Args:
        config: data.text says how to tokenise.
        task: binary, multiclass or language.
        classes: names; of none for language.
        public_size: declared number of training units.
        read: gives all rows, or where ``read_public`` is given, the private ones.
        mask: which of the rows that ``read`` gives are public.
        read_public: gives the public rows.
        unit: record, or user where rows have owners.
        licence: of the data.
        public_split: which rows are public, as a phrase.
        is_public: whether the training rows are public, too.
        unit_rows: rows a unit -> units, where that is public.

    Raises:
        ConfigError: as ``open_tokeniser``; at loading, fewer than two training rows.
    """
    tokeniser = open_tokeniser(config.text)
    info = SourceInfo(
        name=config.name,
        task=task,
        input_shape=(tokeniser.length,),
        num_classes=len(classes) or 1,
        public_size=public_size,
        class_names=tuple(classes),
        unit=unit,
        licence=licence,
        public_split=public_split,
        is_public=is_public,
        vocabulary=tokeniser.vocabulary,
        pad=tokeniser.pad,
        unit_rows=unit_rows,
    )

    def load() -> Splits:
        texts = read()
        rows, cut = to_rows(texts, tokeniser, task)
        if read_public is not None:
            held, public = to_rows(read_public(), tokeniser, task)[0], np.zeros(len(rows), dtype=bool)
        else:
            assert mask is not None
            public = mask(texts)
            held = rows.take(torch.from_numpy(np.flatnonzero(public)))
        train = torch.from_numpy(np.flatnonzero(~public))
        if len(train) < 2:
            raise ConfigError("data.path", config.path, f"leaves {len(train)} training rows", "give at least two")
        found = {"rows": len(train), "rows_cut_off": int(cut[train].sum()), "max_length": tokeniser.length}
        return Splits(train=rows.take(train), public=held, found={"text": found})

    return Source(info, load)


def split_of(config: DataConfig, seed: int) -> Callable[[Texts], np.ndarray] | None:
    """Which rows of a user's own file are public: by owner, or where there are none by position; None: another file."""
    fraction = config.public_fraction
    if fraction is None:
        return None

    def mask(texts: Texts) -> np.ndarray:
        if texts.owner is not None:
            return split_ids(texts.owner, fraction, seed)
        return split_positions(len(texts), fraction, seed)

    return mask
