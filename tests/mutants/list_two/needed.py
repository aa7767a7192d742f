"""Models and data that some mistakes need."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.registry import models, sources


class _Tagger(nn.Module):
    """Token ids (R, L) -> (R, num_outputs): an embedding with a padding row, a map of every token, and their mean."""

    takes_ids = True

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 16, padding_idx=0)
        self.each = nn.Linear(16, 16)
        self.last = nn.Linear(16, num_outputs)

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(torch.tanh(self.each(self.table(ids))).mean(1))


class _Tied(nn.Module):
    """Token ids (R, L) -> (R, num_outputs), with the table again as the matrix of the last map."""

    takes_ids = True

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 16)
        self.each = nn.Linear(16, 16)
        self.num_outputs = num_outputs

    def forward(self, ids: Tensor) -> Tensor:
        hidden = torch.tanh(self.each(self.table(ids)))
        return F.linear(hidden, self.table.weight).mean(1)[:, : self.num_outputs]


class _Running(nn.Module):
    """A map of centred inputs; the centre is a buffer that training rows move."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.last = nn.Linear(width, num_outputs)
        self.register_buffer("centre", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        if self.training:
            self.centre.mul_(0.99).add_(flat.detach().mean(0), alpha=0.01)  # pyright: ignore[reportCallIssue]
        return self.last(flat)


@models.register("list_two_tagger")
def tagger(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """See ``_Tagger``."""
    return _Tagger(num_outputs)


@models.register("list_two_tied")
def tied(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """See ``_Tied``."""
    return _Tied(num_outputs)


@models.register("list_two_running")
def running(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """See ``_Running``."""
    return _Running(math.prod(input_shape), num_outputs)


@models.register("list_two_norm")
def norm(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """A hidden layer behind which layer normalisation stands."""
    width = math.prod(input_shape)
    return nn.Sequential(nn.Flatten(), nn.Linear(width, 32), nn.LayerNorm(32), nn.Tanh(), nn.Linear(32, num_outputs))


@models.register("list_two_conv")
def conv(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """One convolution and one linear map."""
    channels, height, width = input_shape
    places = 8 * (height - 2) * (width - 2)
    return nn.Sequential(nn.Conv2d(channels, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(places, num_outputs))


@sources.register("list_two_tokens")
def tokens(config: Any, seed: int) -> Source:
    """600 rows of eight token ids out of 20, four classes; ids repeat, and 0 pads."""

    def load() -> Splits:
        generator = torch.Generator().manual_seed(7)
        ids = torch.randint(0, 20, (700, 8), generator=generator)
        ids = torch.where(torch.rand(700, 8, generator=generator) < 0.3, ids[:, :1], ids)
        rows = Rows(ids, ids.sum(1) % 4)
        return Splits(train=rows.take(torch.arange(600)), public=rows.take(torch.arange(600, 700)))

    info = SourceInfo(
        name="list_two_tokens",
        task="multiclass",
        input_shape=(8,),
        num_classes=4,
        public_size=600,
        is_public=True,
        vocabulary=20,
    )
    return Source(info, load)


@sources.register("list_two_users")
def users(config: Any, seed: int) -> Source:
    """300 users of one to five rows each, eight columns, three classes."""

    def load() -> Splits:
        generator = torch.Generator().manual_seed(11)
        owner = torch.repeat_interleave(torch.arange(400), torch.arange(400) % 5 + 1)
        inputs = torch.randn(len(owner), 8, generator=generator) + torch.randn(400, 8, generator=generator)[owner]
        rows = Rows(inputs.clamp(-3, 3), (inputs[:, :3]).argmax(1), owner)
        return Splits(
            train=rows.take(torch.nonzero(owner < 300).flatten()),
            public=rows.take(torch.nonzero(owner >= 300).flatten()),
        )

    info = SourceInfo(
        name="list_two_users",
        task="multiclass",
        input_shape=(8,),
        num_classes=3,
        public_size=300,
        unit="user",
        is_public=True,
    )
    return Source(info, load)


TOKENS = (
    "data=own",
    "data.name=list_two_tokens",
    "model=own",
    "model.name=list_two_tagger",
    "privacy.expected_batch_size=60",
)
TIED = (
    "data=own",
    "data.name=list_two_tokens",
    "model=own",
    "model.name=list_two_tied",
    "privacy.expected_batch_size=60",
)
USERS = (
    "data=own",
    "data.name=list_two_users",
    "privacy.unit=user",
    "privacy.max_rows_per_unit=5",
    "privacy.expected_batch_size=40",
)
RARE = ("privacy.expected_batch_size=1", "privacy.epochs=null", "privacy.steps=60")
