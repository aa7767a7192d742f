"""Settings of ``dptrain generate``."""

from __future__ import annotations

from dataclasses import dataclass

from dptrain.config_checkpoint import check_source
from dptrain.ranges import number


@dataclass
class GenerateConfig:
    """Root of ``dptrain generate``."""

    run: str = "???"
    """A run folder, or its checkpoint/, of a language model; it is verified first."""
    prompt: str = ""
    """The text that is continued; empty: from the tokenizer's opening mark."""
    tokenizer: str | None = None
    """A tokenizer.json, a folder that holds one, or ``bytes``; null: what the run's own config names."""
    max_tokens: int = 40
    """Most tokens that are added, at least 1; prompt and these together fit into the model's positions."""
    temperature: float = 1.0
    """Scores are divided by it, in [0, 100]; 0 takes the likeliest token every time."""
    top_k: int | None = None
    """Only the k likeliest tokens may be drawn, at least 1; null: all."""
    count: int = 1
    """Continuations, in [1, 1000]."""
    seed: int = 0
    """Of the draws of tokens: they are made of a release, so that they may be repeated at will."""
    key: str | None = None
    """Public key file of the one signer to accept; null: your own key and those that you trust."""
    sealing_key: str | None = None
    """Source of the key that opens sealed weights, as ``checkpoint.key``; null: your own."""

    def __post_init__(self) -> None:
        check_source("sealing_key", self.sealing_key)
        number("max_tokens", self.max_tokens, low=1, high=8192)
        number("temperature", self.temperature, low=0, high=100)
        number("top_k", self.top_k, low=1)
        number("count", self.count, low=1, high=1000)
        number("seed", self.seed, low=0, high=2**32 - 1)
