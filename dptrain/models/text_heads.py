"""From a row of token ids to outputs: the mask that the row itself makes, pooling, and the loss of next tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
"""Public lengths to which rows are cut before a frozen body maps them."""


def own_tokens(ids: Tensor, pad: int) -> Tensor:  # (R, T) -> (R, T) bool
    """Which tokens a row has; its first counts always, so that an empty row attends to something."""
    first = torch.arange(ids.shape[1], device=ids.device) == 0
    return (ids != pad) | first


def seen(tokens: Tensor, causal: bool) -> Tensor:  # (R, T) bool -> (R, 1, 1 or T, T) bool
    """Which token may attend to which: to all of its row, or to those up to itself.

    Padding is seen by nobody but, where causal, by itself: a softmax over nothing would be no number.
    """
    if not causal:
        return tokens[:, None, None, :]
    places = torch.arange(tokens.shape[1], device=tokens.device)
    before, same = places[:, None] >= places[None, :], places[:, None] == places[None, :]
    return ((tokens[:, None, :] & before) | same)[:, None]


class TextClassifier(nn.Module):
    """A body of transformers, what is pooled of a row, and a linear layer; (R, T) ids -> (R, num_outputs).

    Features (R, layers H) in floating point, as ``features`` gives them, are taken as well: then the head alone runs.

    Args:
        body: takes ids and a mask of four dimensions; gives last_hidden_state, or logits where ``head`` is None.
        head: (R, layers H) -> (R, num_outputs); None where the body has its own.
        pad: id of the padding token.
        causal: whether a token sees those before it only.
        pooling: mean or last; own where the body has a head.
        normalise: whether what is pooled has length 1.
        layers: how many of the last layers are pooled, side by side, each alike (Devlin et al. 2019, section 5.3, where
            frozen features of the last four tell more than the last alone).
    """

    takes_ids = True
    any_length = True
    """A row gives the same whatever padding follows it, so that batches may be cut to shorter lengths."""

    def __init__(
        self,
        body: nn.Module,
        head: nn.Module | None,
        pad: int,
        causal: bool,
        pooling: str,
        normalise: bool,
        layers: int = 1,
    ) -> None:
        super().__init__()
        self.body, self.head, self.layers = body, head, layers
        self.pad, self.causal, self.pooling, self.normalise = pad, causal, pooling, normalise
        self.vocabulary = int(getattr(body, "config").vocab_size)  # noqa: B009 (a module's attribute is no known type)

    def features(self, ids: Tensor) -> Tensor:  # (R, T) -> (R, layers H)
        """What is pooled of each row."""
        tokens = own_tokens(ids, self.pad)
        several = {"output_hidden_states": True} if self.layers > 1 else {}
        made: Any = self.body(input_ids=ids, attention_mask=seen(tokens, self.causal), **several)
        hidden = made.hidden_states[-self.layers :] if several else [made.last_hidden_state]  # (R, T, H) each
        weight = tokens
        if self.pooling == "last":
            places = torch.arange(ids.shape[1], device=ids.device)
            weight = places == (tokens * places).amax(1, keepdim=True)
        weight = weight.to(hidden[0].dtype)[:, :, None]
        pooled = [(layer * weight).sum(1) / weight.sum(1) for layer in hidden]
        if self.normalise:
            pooled = [F.normalize(layer, dim=1) / self.layers**0.5 for layer in pooled]
        return torch.cat(pooled, 1)

    def forward(self, rows: Tensor) -> Tensor:
        if self.head is None:
            tokens = own_tokens(rows, self.pad)
            made: Any = self.body(input_ids=rows, attention_mask=seen(tokens, self.causal))
            return made.logits
        return self.head(rows if rows.is_floating_point() else self.features(rows))

    def mapped(self, ids: Tensor) -> Tensor:  # (R, T) -> (R, layers H)
        """Features of rows in parts of about their own length: which part a row goes to follows from the row alone."""
        places = torch.arange(1, ids.shape[1] + 1, device=ids.device)
        lengths = (own_tokens(ids, self.pad) * places).amax(1)
        made: Tensor | None = None
        low = 0
        for bucket in (*[b for b in BUCKETS if b < ids.shape[1]], ids.shape[1]):
            inside = torch.nonzero((lengths > low) & (lengths <= bucket)).flatten()
            low = bucket
            if len(inside):
                part = self.features(ids[inside, :bucket])
                made = part.new_empty(len(ids), part.shape[1]) if made is None else made
                made[inside] = part
        assert made is not None, "no rows to map"
        return made


class TokenClassifier(nn.Module):
    """A model of transformers with a linear layer a token; (R, T) ids -> (R, T K), a row's logits token by token.

    Args:
        body: a model for token classification, which has its own head.
        pad: id of the padding token.
        causal: whether a token sees those before it only.
    """

    takes_ids = True
    any_length = True

    def __init__(self, body: nn.Module, pad: int, causal: bool) -> None:
        super().__init__()
        self.body, self.pad, self.causal = body, pad, causal
        self.vocabulary = int(getattr(body, "config").vocab_size)  # noqa: B009

    def forward(self, ids: Tensor) -> Tensor:
        made: Any = self.body(input_ids=ids, attention_mask=seen(own_tokens(ids, self.pad), self.causal))
        return made.logits.flatten(1)


class LanguageModel(nn.Module):
    """A causal model of transformers; (R, T) ids -> (R, 1), the mean loss of a row's next tokens in nats.

    The loss of each row comes out instead of logits (R, T, V), which for a whole public split would not fit in memory.
    """

    takes_ids = True
    any_length = True
    head_parts: tuple[str, ...] = ()
    """None: what tells the next token is a part of the body, and often the same matrix as its embedding."""

    def __init__(self, body: nn.Module, pad: int) -> None:
        super().__init__()
        self.body, self.pad = body, pad
        self.vocabulary = int(getattr(body, "config").vocab_size)  # noqa: B009

    def logits(self, ids: Tensor) -> Tensor:  # (R, T) -> (R, T, V)
        """Scores of the token after each."""
        made: Any = self.body(input_ids=ids, attention_mask=seen(own_tokens(ids, self.pad), True), use_cache=False)
        return made.logits

    def forward(self, ids: Tensor) -> Tensor:
        scores = self.logits(ids)[:, :-1].flatten(0, 1)
        losses = F.cross_entropy(scores, ids[:, 1:].flatten(), reduction="none").unflatten(0, (len(ids), -1))
        counted = own_tokens(ids, self.pad)[:, 1:].to(losses.dtype)
        return (losses * counted).sum(1, keepdim=True) / counted.sum(1, keepdim=True).clamp(min=1.0)
