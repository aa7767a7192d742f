"""Models and data that some mistakes need."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dptrain.data.source import Source, SourceInfo
from dptrain.registry import models, sources


class Mixing(nn.Module):
    """Takes the mean of the batch off, as batch normalisation does."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(width, 16), nn.Linear(16, outputs)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x.flatten(1)))
        return self.last(hidden - self.mean(hidden))

    def mean(self, hidden: Tensor) -> Tensor | float:
        return 0.0


@models.register("mutants_mixing")
def mixing(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    return Mixing(math.prod(input_shape), num_outputs)


class Counting(nn.Module):
    """Keeps a running mean of what it sees in a buffer that no output depends on."""

    seen: Tensor

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.last = nn.Linear(width, outputs)
        self.register_buffer("seen", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.flatten(1))


@models.register("mutants_counting")
def counting(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    return Counting(math.prod(input_shape), num_outputs)


class TiedTokens(nn.Module):
    """An embedding whose table is also the matrix of the output."""

    takes_ids = True
    vocabulary = 10

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(10, 6), nn.Linear(6, 10, bias=False)
        self.out.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.tanh(self.table(tokens)).mean(1))


@models.register("mutants_tied")
def tied(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    return TiedTokens()


@sources.register("mutants_tokens")
def tokens(config: Any, seed: int) -> Source:
    def load() -> Any:
        raise AssertionError("nothing is read")

    info = SourceInfo(
        name="mutants_tokens", task="multiclass", input_shape=(5,), num_classes=10, public_size=1000, vocabulary=10
    )
    return Source(info, load)
