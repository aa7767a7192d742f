"""Settings of text: which column holds it, and how it becomes token ids."""

from __future__ import annotations

from dataclasses import dataclass

from dptrain.ranges import number as _number


@dataclass
class TextConfig:
    """How rows of text become rows of token ids. Everything here is public and declared, never learnt from rows."""

    column: str | None = None
    """Column with the text (your own files); shipped sources know theirs."""
    tokenizer: str | None = None
    """A tokenizer.json on this machine or the folder that holds one (say, the model's), or ``bytes``, built in."""
    max_length: int = 128
    """Tokens of a row, in [2, 8192]: the public bound T. Longer rows are cut off, shorter ones are padded."""
    pad: int | None = None
    """Id that fills a row behind its end, at least 0; null: the tokenizer's padding token, else its end-of-text one."""

    def __post_init__(self) -> None:
        _number("data.text.max_length", self.max_length, low=2, high=8192)
        _number("data.text.pad", self.pad, low=0)
