"""Words to token ids that know which word they come from, for labels that belong to words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dptrain.config_text import TextConfig
from dptrain.data.tokenise import BYTES, TOGETHER, tokenizer_file

Piece = tuple[list[int], list[int | None]]
"""Ids of a text, at most T of them, and the word that each is a part of; None for a mark of the tokenizer's."""


@dataclass(frozen=True)
class WordTokeniser:
    """What turns lists of words into ids."""

    length: int
    """T, most tokens of a row."""
    encode: Callable[[Sequence[Sequence[str]]], Iterator[Piece]]
    """Row i depends on words i and public settings alone."""


def open_word_tokeniser(settings: TextConfig) -> WordTokeniser:
    """The tokenizer that ``data.text`` names, for words; ``open_tokeniser`` has found it good."""
    length = settings.max_length
    if settings.tokenizer == BYTES:
        return WordTokeniser(length, lambda texts: (_bytes_of(words, length) for words in texts))
    from tokenizers import Tokenizer

    made: Any = Tokenizer.from_buffer(tokenizer_file(str(settings.tokenizer)).read_bytes())
    made.no_padding()
    made.enable_truncation(length)

    def encode(texts: Sequence[Sequence[str]]) -> Iterator[Piece]:
        for start in range(0, len(texts), TOGETHER):
            block = [list(words) for words in texts[start : start + TOGETHER]]
            for found in made.encode_batch(block, is_pretokenized=True):
                yield found.ids, found.word_ids

    return WordTokeniser(length, encode)


def _bytes_of(words: Sequence[str], length: int) -> Piece:
    """As the built-in tokenizer does: 1, the bytes of words with a blank between them, 2."""
    ids: list[int] = [1]
    word_of: list[int | None] = [None]
    for place, word in enumerate(words):
        raw = word.encode("utf-8")
        if place:
            ids.append(ord(" ") + 3)
            word_of.append(None)
        ids += [byte + 3 for byte in raw]
        word_of += [place] * len(raw)
    return [*ids[: length - 1], 2], [*word_of[: length - 1], None]
