"""Models and data that some mistakes need."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.registry import models, sources

TOKENS, WORDS = 12, 80
"""Places of a row of ids, and how many ids there are."""
PIXEL = 51
"""A pixel that is black in one digit of fourteen."""


def _strong(layer: nn.Linear, times: float = 4.0) -> nn.Linear:
    """The layer with larger weights, so that what is in front of it has a large part in a gradient's norm."""
    with torch.no_grad():
        layer.weight.mul_(times)
    return layer


class _Rooted(nn.Module):
    """Beside a hidden layer, the root of a learned multiple of one pixel, whose slope has no end where it is black."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, 32)
        self.gain = nn.Parameter(torch.ones(()))
        self.last = _strong(nn.Linear(33, num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        root = torch.sqrt(self.gain * torch.relu(flat[:, PIXEL : PIXEL + 1] + 1.0))
        return self.last(torch.cat([torch.tanh(self.first(flat)), root], 1))


class _Adapted(nn.Module):
    """A frozen map with an adapter of rank 4 beside it."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(width, 32).requires_grad_(False)
        self.lora_a, self.lora_b = nn.Linear(width, 4, bias=False), _strong(nn.Linear(4, 32, bias=False), 2.0)
        self.last = _strong(nn.Linear(32, num_outputs)).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return self.last(torch.tanh(self.base(flat) + self.lora_b(self.lora_a(flat))))


class _TwoWays(nn.Module):
    """A picture goes through a weight, and through one and a half times the same weight."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(24, width) / (2.0 * math.sqrt(width)))
        self.last = _strong(nn.Linear(24, num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return self.last(torch.tanh(F.linear(flat, self.weight) + F.linear(flat, 1.5 * self.weight)))


class _Grouped(nn.Module):
    """A hidden layer in groups that are normalised, each channel with places that are far from 0."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, 32)
        self.norm = nn.GroupNorm(2, 8)
        self.last = _strong(nn.Linear(32, num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x.flatten(1))) + 1.0
        return self.last(self.norm(hidden.unflatten(1, (8, 4))).flatten(1))


class _Lines(nn.Module):
    """The lines of a picture are tokens, which go through the same two maps."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, 16), _strong(nn.Linear(16, 16))
        self.last = nn.Linear(16, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1, 2)
        return self.last(torch.tanh(self.second(torch.tanh(self.first(tokens)))).mean(1))


class _Recurrent(nn.Module):
    """The lines of a picture are time steps of an LSTM."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.layer = nn.LSTM(width, 12, batch_first=True)
        self.last = _strong(nn.Linear(12, num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x.flatten(1, 2))[0][:, -1])


class _Placed(nn.Module):
    """Ids through a table, and to each what a second table knows of its place."""

    takes_ids = True

    def __init__(self, length: int, num_outputs: int) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(WORDS, 16), nn.Embedding(length, 16)
        self.last = _strong(nn.Linear(16, num_outputs))

    def forward(self, ids: Tensor) -> Tensor:
        place = torch.arange(ids.shape[1], device=ids.device)
        return self.last(torch.tanh(self.table(ids) + self.places(place)).mean(1))


def _size(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _register(name: str, build: Callable[[tuple[int, ...], int], nn.Module]) -> None:
    """Files a model whose widths are its own: ``hidden`` is taken and not read, as a run may set it for another."""

    def made(input_shape: tuple[int, ...], num_outputs: int, hidden: Sequence[int] = ()) -> nn.Module:
        return build(input_shape, num_outputs)

    models.register(f"list_five_{name}")(made)


_register("rooted", lambda shape, outputs: _Rooted(_size(shape), outputs))
_register("adapted", lambda shape, outputs: _Adapted(_size(shape), outputs))
_register("two_ways", lambda shape, outputs: _TwoWays(_size(shape), outputs))
_register("grouped", lambda shape, outputs: _Grouped(_size(shape), outputs))
_register("lines", lambda shape, outputs: _Lines(shape[-1], outputs))
_register("lstm", lambda shape, outputs: _Recurrent(shape[-1], outputs))
_register("placed", lambda shape, outputs: _Placed(shape[-1], outputs))


@sources.register("list_five_tokens")
def tokens(config: Any, seed: int) -> Source:
    """500 rows of twelve token ids out of 80, the low ones frequent; five classes, of which the last is frequent."""

    def load() -> Splits:
        generator = torch.Generator().manual_seed(53)
        ids = (WORDS * torch.rand(600, TOKENS, generator=generator) ** 3).long()
        rows = Rows(ids, (ids.sum(1) % 12).clamp(max=4))
        return Splits(train=rows.take(torch.arange(500)), public=rows.take(torch.arange(500, 600)))

    info = SourceInfo(
        name="list_five_tokens",
        task="multiclass",
        input_shape=(TOKENS,),
        num_classes=5,
        public_size=500,
        is_public=True,
        vocabulary=WORDS,
    )
    return Source(info, load)


@sources.register("list_five_users")
def users(config: Any, seed: int) -> Source:
    """260 users of one to four rows each, in no order; eight columns, three classes."""

    def load() -> Splits:
        generator = torch.Generator().manual_seed(59)
        owner = torch.repeat_interleave(torch.arange(320), torch.randint(1, 5, (320,), generator=generator))
        inputs = torch.randn(len(owner), 8, generator=generator) + torch.randn(320, 8, generator=generator)[owner]
        rows = Rows(inputs.clamp(-3, 3), inputs[:, :3].argmax(1), owner)
        order = torch.randperm(len(owner), generator=generator)
        train, public = order[owner[order] < 260], order[owner[order] >= 260]
        return Splits(train=rows.take(train), public=rows.take(public))

    info = SourceInfo(
        name="list_five_users",
        task="multiclass",
        input_shape=(8,),
        num_classes=3,
        public_size=260,
        unit="user",
        is_public=True,
    )
    return Source(info, load)


def own(model: str) -> tuple[str, ...]:
    """Settings that take one of these models."""
    return "model=own", f"model.name=list_five_{model}"


def _on(source: str, batch: int) -> tuple[str, ...]:
    return "data=own", f"data.name=list_five_{source}", f"privacy.expected_batch_size={batch}"


PLACED = (*_on("tokens", 60), *own("placed"))
USERS = (*_on("users", 40), "privacy.unit=user", "privacy.max_rows_per_unit=4")
VMAP = ("clipping.engine=vmap",)
LIMIT = ("execution.memory_limit=0",)
RARE = ("privacy.expected_batch_size=2",)
LOOKS = ("evaluation.metrics=dp", "evaluation.noise_multiplier=4")
