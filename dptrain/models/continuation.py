"""Draws continuations from a language model, token after token. Post-processing of a release: it costs no epsilon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dptrain.errors import ConfigError
from dptrain.models.hf import FAMILIES
from dptrain.models.text_heads import LanguageModel


def check_language(module: nn.Module, run: str, vocabulary: int) -> LanguageModel:
    """The module, if it is a language model that knows every id of the tokenizer.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(module, LanguageModel):
        raise ConfigError("run", run, "is no language model", "give a run of data.task=language")
    if vocabulary > module.vocabulary:
        problem = f"makes {vocabulary} ids, and the model knows {module.vocabulary}"
        raise ConfigError("tokenizer", run, problem, "give the tokenizer that the run was trained with")
    return module


def continuations(
    model: LanguageModel,
    start: Sequence[int],
    *,
    ends: Sequence[int],
    tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    count: int = 1,
    seed: int = 0,
) -> list[list[int]]:
    """``count`` continuations of ``start``, each without it, up to ``tokens`` ids long and cut before its first end.

    Args:
        model: in evaluation mode.
        start: (S,) ids, at least one.
        ends: ids that close a text; they are never part of what is returned.
        tokens: most ids drawn.
        temperature: scores are divided by it; 0 takes the likeliest id.
        top_k: only the k likeliest ids may be drawn; None: all.
        count: number of continuations, drawn side by side.
        seed: of torch's generator.

    Raises:
        ConfigError: start and tokens together do not fit into the model's positions.
    """
    body: Any = model.body
    places = getattr(body.config, "max_position_embeddings", None)
    if places is not None and len(start) + tokens > places - FAMILIES[body.config.model_type].extra_places:
        problem = f"and a prompt of {len(start)} tokens do not fit into the model's {places} positions"
        raise ConfigError("max_tokens", tokens, problem, "lower it, or give a shorter prompt")
    generator = torch.Generator().manual_seed(seed)
    rows = torch.tensor(list(start), dtype=torch.int64).repeat(count, 1)  # (count, S)
    closing = torch.tensor(sorted(set(ends)), dtype=torch.int64)
    open_rows = torch.ones(count, dtype=torch.bool)
    with torch.no_grad():
        for _ in range(tokens):
            made = draw(_next_scores(body, rows), temperature, top_k, generator)
            rows = torch.cat([rows, made[:, None]], dim=1)
            open_rows &= ~torch.isin(made, closing)
            if not bool(open_rows.any()):
                break
    return [_cut(row[len(start) :].tolist(), set(ends)) for row in rows]


def draw(scores: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> Tensor:
    """One id a row of scores (R, V), float64 softmax: (R,)."""
    if temperature == 0.0:
        return scores.argmax(dim=1)
    scaled = scores.double() / temperature
    if top_k is not None and top_k < scores.shape[1]:
        kept = scaled.topk(top_k, dim=1)
        place = torch.multinomial(kept.values.softmax(dim=1), 1, generator=generator)
        return kept.indices.gather(1, place)[:, 0]
    return torch.multinomial(scaled.softmax(dim=1), 1, generator=generator)[:, 0]


def _next_scores(body: Any, rows: Tensor) -> Tensor:  # (R, S) -> (R, V)
    """Scores of the id behind each row. No row is padded; a padding id inside a prompt is a token like others."""
    return body(input_ids=rows, use_cache=False).logits[:, -1]


def _cut(ids: list[int], ends: set[int]) -> list[int]:
    """The ids before the first that closes the text."""
    return ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]
