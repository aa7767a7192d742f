"""Text to token ids by a tokenizer on this machine: nothing is fetched, no code of others runs, no row sees another."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dptrain.config_text import TextConfig
from dptrain.errors import ConfigError

BYTES = "bytes"
"""The tokenizer built in: 0 pads, 1 begins a row, 2 ends it, and byte b of its UTF-8 is b + 3."""
BYTES_VOCABULARY = 3 + 256
PADDING = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "</s>")
"""Tokens that may fill a row where the file names none, in this order; the last two end a text."""
LARGEST = 64 << 20
"""Most bytes of a tokenizer file that is read."""
TOGETHER = 4096
"""Texts handed to the tokenizer at once, which bounds memory."""

Encode = Callable[[Sequence[str]], list[tuple[list[int], bool]]]
"""Texts -> ids of each, at most T of them, and whether any were cut off."""


@dataclass(frozen=True)
class Tokeniser:
    """What turns texts into rows of ids."""

    vocabulary: int
    """Ids lie in 0..vocabulary-1."""
    pad: int
    """Fills a row behind its end."""
    length: int
    """T, tokens of a row."""
    digest: str
    """SHA-256 of the tokenizer's bytes and the settings: two that agree in it make the same ids."""
    encode: Encode

    def rows(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (N, T) int64, padded; and (N,) bool, which rows were cut off at T.

        Guarantee: row i depends on text i and public settings alone.
        """
        ids = torch.full((len(texts), self.length), self.pad, dtype=torch.int64)
        cut = torch.zeros(len(texts), dtype=torch.bool)
        for start in range(0, len(texts), TOGETHER):
            for row, (found, longer) in enumerate(self.encode(texts[start : start + TOGETHER]), start=start):
                ids[row, : len(found)] = torch.tensor(found, dtype=torch.int64)
                cut[row] = longer
        return ids, cut


def open_tokeniser(settings: TextConfig) -> Tokeniser:
    """The tokenizer that ``data.text`` names. Reads its file and no row.

    Raises:
        ConfigError: none is named, there is no such file, it is no tokenizer, it names no padding token, or the
            library ``tokenizers`` is not installed.
    """
    if settings.tokenizer is None:
        remedy = "name the model's folder, a tokenizer.json, or bytes"
        raise ConfigError("data.text.tokenizer", "null", "is needed by data that is text", remedy)
    if settings.tokenizer == BYTES:
        pad = _checked_pad(0 if settings.pad is None else settings.pad, BYTES_VOCABULARY)
        facts = f"{BYTES} 1 {settings.max_length} {pad}"
        digest = hashlib.sha256(facts.encode()).hexdigest()
        return Tokeniser(BYTES_VOCABULARY, pad, settings.max_length, digest, _by_bytes(settings.max_length))
    return _from_file(tokenizer_file(settings.tokenizer), settings)


def _by_bytes(length: int) -> Encode:
    def encode(texts: Sequence[str]) -> list[tuple[list[int], bool]]:
        made = []
        for text in texts:
            raw = text.encode("utf-8", "surrogatepass")
            made.append(([1, *(byte + 3 for byte in raw[: length - 2]), 2], len(raw) > length - 2))
        return made

    return encode


def tokenizer_file(given: str) -> Path:
    """The tokenizer.json that a setting names: itself, or the one in the folder.

    Raises:
        ConfigError: there is none.
    """
    path = Path(given).expanduser()
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        problem = "holds no tokenizer.json" if path.is_dir() else "there is no such file or folder"
        remedy = "give a tokenizer.json on this machine, or bytes; nothing is fetched"
        raise ConfigError("data.text.tokenizer", given, problem, remedy)
    return file


def _from_file(file: Path, settings: TextConfig) -> Tokeniser:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        problem = f"needs the library tokenizers, which cannot be imported ({error})"
        raise ConfigError("data.text.tokenizer", file, problem, "pip install 'dptrain[finetune]', or bytes") from error
    if file.stat().st_size > LARGEST:
        raise ConfigError("data.text.tokenizer", file, f"is larger than {LARGEST} bytes", "give a tokenizer.json")
    content = file.read_bytes()
    try:
        made: Any = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises plain Exception for whatever it cannot read
        problem = f"is no tokenizer ({type(error).__name__})"
        raise ConfigError(
            "data.text.tokenizer", file, problem, "give a tokenizer.json as tokenizers saves it"
        ) from error
    vocabulary = 1 + max(made.get_vocab(with_added_tokens=True).values(), default=-1)
    pad = _checked_pad(_padding(made, file) if settings.pad is None else settings.pad, vocabulary)
    marks = made.num_special_tokens_to_add(False)
    if marks >= settings.max_length:
        problem = f"leaves no room for text beside the tokenizer's own {marks} marks"
        raise ConfigError("data.text.max_length", settings.max_length, problem, "raise it")
    made.no_padding()
    made.enable_truncation(settings.max_length)

    def encode(texts: Sequence[str]) -> list[tuple[list[int], bool]]:
        return [(found.ids, bool(found.overflowing)) for found in made.encode_batch(list(texts))]

    whole = hashlib.sha256(content)
    whole.update(f" {settings.max_length} {pad}".encode())
    return Tokeniser(vocabulary, pad, settings.max_length, whole.hexdigest(), encode)


def _padding(made: Any, file: Path) -> int:
    if made.padding is not None:
        return int(made.padding["pad_id"])
    for token in PADDING:
        found = made.token_to_id(token)
        if found is not None:
            return int(found)
    raise ConfigError("data.text.pad", "null", f"{file.name} names no padding token", "set its id")


def _checked_pad(pad: int, vocabulary: int) -> int:
    if pad >= vocabulary:
        problem = f"is outside the tokenizer's {vocabulary} ids"
        raise ConfigError("data.text.pad", pad, problem, "give an id of the vocabulary, or leave it out")
    return pad
