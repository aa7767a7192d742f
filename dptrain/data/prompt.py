"""A prompt as token ids, and ids as text again: a language model's tokenizer without the marks that close a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dptrain.config_text import TextConfig
from dptrain.data.tokenise import BYTES, BYTES_VOCABULARY, open_tokeniser, tokenizer_file
from dptrain.errors import ConfigError

LONGEST = 8192
"""Most tokens of a prompt."""


@dataclass(frozen=True)
class Prompter:
    """What turns a prompt into ids, and drawn ids into text."""

    vocabulary: int
    ends: tuple[int, ...]
    """Ids that close a text: padding, and the first mark that the tokenizer puts behind one."""
    start: Callable[[str], list[int]]
    """Text -> its ids with the opening marks, without the closing ones. Raises ConfigError where none are left."""
    text: Callable[[Sequence[int]], str]
    """Ids -> text, marks left out."""


def open_prompter(tokenizer: str) -> Prompter:
    """The tokenizer at ``tokenizer`` (as ``data.text.tokenizer``), for prompts.

    Closing marks are what the tokenizer puts behind an empty text, told from opening ones by what an empty text and
    any other have in common from the left.

    Raises:
        ConfigError: as ``open_tokeniser``.
    """
    made = open_tokeniser(TextConfig(tokenizer=tokenizer, max_length=LONGEST))
    empty, other = (ids for ids, _ in made.encode(["", "a"]))
    opening = next((i for i, (a, b) in enumerate(zip(empty, other, strict=False)) if a != b), len(empty))
    closing = empty[opening:]

    def start(prompt: str) -> list[int]:
        found, cut = made.encode([prompt])[0]
        if cut:
            raise ConfigError("prompt", f"({len(prompt)} characters)", f"has over {LONGEST} tokens", "cut it shorter")
        ids = found[: len(found) - len(closing)]
        if not ids:
            raise ConfigError("prompt", "''", "gives no token, and the tokenizer has no opening mark", "give a text")
        return ids

    return Prompter(made.vocabulary, (made.pad, *closing[:1]), start, _decoder(tokenizer))


def _decoder(tokenizer: str) -> Callable[[Sequence[int]], str]:
    if tokenizer == BYTES:

        def of_bytes(ids: Sequence[int]) -> str:
            return bytes(i - 3 for i in ids if 3 <= i < BYTES_VOCABULARY).decode("utf-8", "replace")

        return of_bytes
    from tokenizers import Tokenizer

    whole = Tokenizer.from_buffer(tokenizer_file(tokenizer).read_bytes())
    return lambda ids: whole.decode(list(ids), skip_special_tokens=True)
