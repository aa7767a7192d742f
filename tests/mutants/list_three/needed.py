"""Models and data that some mistakes need."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.registry import models, sources


class _Attending(nn.Module):
    """Rows of a picture as tokens, which ask about the same rows in another basis: a packed projection, used apart."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.last = nn.Linear(16, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1, 2)
        known = torch.tanh(self.first(tokens))
        asked = known.flip(1) * 0.5
        return self.last(self.attention(asked, known, known)[0].mean(1))


class _Recurrent(nn.Module):
    """Rows of a picture as time steps."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], width: int, num_outputs: int) -> None:
        super().__init__()
        self.layer = kind(width, 16, batch_first=True)
        self.last = nn.Linear(16, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x.flatten(1, 2))[0][:, -1])


class _Pixels(nn.Module):
    """Every pixel with fixed features of its place is a token of two maps, one behind the other."""

    def __init__(self, places: int, num_outputs: int) -> None:
        super().__init__()
        angle = torch.arange(places)[:, None] * torch.linspace(0.05, 1.5, 15)
        self.register_buffer("place", torch.sin(angle), persistent=False)
        self.each = nn.Linear(16, 16)
        self.again = nn.Linear(16, 16)
        self.last = nn.Linear(16, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        place: Any = self.place
        tokens = torch.cat([x.flatten(1)[:, :, None], place.expand(len(x), *place.shape)], 2)
        return self.last(torch.tanh(self.again(torch.tanh(self.each(tokens)))).mean(1))


class _Difference(nn.Module):
    """What a map makes of a picture, less what it makes of nearly the same picture, made large."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.each = nn.Linear(width, 16, bias=False)
        self.last = nn.Linear(16, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        both = self.each(torch.stack([flat, flat * (1.0 - 2.0**-11)], 1))
        return self.last(torch.tanh(1024.0 * (both[:, 0] - both[:, 1])))


class _Twice(nn.Module):
    """One hidden map, called twice."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, 16)
        self.shared = nn.Linear(16, 16)
        self.last = nn.Linear(16, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x.flatten(1)))
        hidden = hidden + torch.relu(self.shared(hidden))
        return self.last(hidden + torch.relu(self.shared(hidden)))


class _Scaled(nn.Module):
    """A map by three times its weight."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, width) / (3.0 * math.sqrt(width)))
        self.last = nn.Linear(16, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(F.linear(x.flatten(1), self.weight * 3.0)))


class _Masked(nn.Module):
    """Token ids whose padding (0) attention leaves out."""

    takes_ids = True

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.table = nn.Embedding(60, 16)
        self.project = nn.Linear(16, 48)
        self.last = nn.Linear(16, num_outputs)

    def forward(self, ids: Tensor) -> Tensor:
        q, k, v = self.project(self.table(ids)).chunk(3, -1)
        shown = (ids != 0)[:, None, None, :]
        mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], attn_mask=shown)
        return self.last(mixed[:, 0].mean(1))


class _Tied(nn.Module):
    """Token ids through a table that is also the last matrix."""

    takes_ids = True

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.table = nn.Embedding(60, 16)
        self.num_outputs = num_outputs

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.table(ids), self.table.weight).mean(1)[:, : self.num_outputs]


@models.register("list_three_attention")
def attention(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """See ``_Attending``."""
    return _Attending(input_shape[-1], num_outputs)


@models.register("list_three_lstm")
def lstm(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """See ``_Recurrent``."""
    return _Recurrent(nn.LSTM, input_shape[-1], num_outputs)


@models.register("list_three_gru")
def gru(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """See ``_Recurrent``."""
    return _Recurrent(nn.GRU, input_shape[-1], num_outputs)


@models.register("list_three_pixels")
def pixels(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """See ``_Pixels``."""
    return _Pixels(math.prod(input_shape), num_outputs)


@models.register("list_three_difference")
def difference(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """See ``_Difference``."""
    return _Difference(math.prod(input_shape), num_outputs)


@models.register("list_three_twice")
def twice(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """See ``_Twice``."""
    return _Twice(math.prod(input_shape), num_outputs)


@models.register("list_three_scaled")
def scaled(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """See ``_Scaled``."""
    return _Scaled(math.prod(input_shape), num_outputs)


@models.register("list_three_masked")
def masked(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """See ``_Masked``."""
    return _Masked(num_outputs)


@models.register("list_three_tied")
def tied(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """See ``_Tied``."""
    return _Tied(num_outputs)


@models.register("list_three_grouped")
def grouped(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """A convolution, then one in two groups with a bias."""
    channels, height, width = input_shape
    places = 8 * (height - 4) * (width - 4)
    body = nn.Conv2d(channels, 4, 3), nn.Tanh(), nn.Conv2d(4, 8, 3, groups=2), nn.Tanh()
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(places, num_outputs))


@sources.register("list_three_tokens")
def tokens(config: Any, seed: int) -> Source:
    """600 rows of eight token ids out of 60, most of them rare; 0 pads the end, the first is never 0; four classes."""

    def load() -> Splits:
        generator = torch.Generator().manual_seed(31)
        ids = (60 * torch.rand(700, 8, generator=generator) ** 4).long()
        length = torch.randint(1, 9, (700, 1), generator=generator)
        ids = torch.where(torch.arange(8) < length, ids.clamp(min=1), 0)
        rows = Rows(ids, ids.sum(1) % 4)
        return Splits(train=rows.take(torch.arange(600)), public=rows.take(torch.arange(600, 700)))

    info = SourceInfo(
        name="list_three_tokens",
        task="multiclass",
        input_shape=(8,),
        num_classes=4,
        public_size=600,
        is_public=True,
        vocabulary=60,
    )
    return Source(info, load)


@sources.register("list_three_users")
def users(config: Any, seed: int) -> Source:
    """240 users of one to four rows each, which lie in the file in no order; six columns, three classes."""

    def load() -> Splits:
        generator = torch.Generator().manual_seed(37)
        owner = torch.repeat_interleave(torch.arange(300), torch.arange(300) % 4 + 1)
        inputs = torch.randn(len(owner), 6, generator=generator) + 2.0 * torch.randn(300, 6, generator=generator)[owner]
        rows = Rows(inputs.clamp(-3, 3), inputs[:, :3].argmax(1), owner)
        order = torch.randperm(len(owner), generator=generator)
        train, public = order[owner[order] < 240], order[owner[order] >= 240]
        return Splits(train=rows.take(train), public=rows.take(public))

    info = SourceInfo(
        name="list_three_users",
        task="multiclass",
        input_shape=(6,),
        num_classes=3,
        public_size=240,
        unit="user",
        is_public=True,
    )
    return Source(info, load)


def own(model: str) -> tuple[str, ...]:
    """Settings that take one of these models."""
    return "model=own", f"model.name=list_three_{model}"


def _on(source: str, batch: int) -> tuple[str, ...]:
    return "data=own", f"data.name=list_three_{source}", f"privacy.expected_batch_size={batch}"


MASKED = (*_on("tokens", 60), *own("masked"))
TIED = (*_on("tokens", 60), *own("tied"))
USERS = (*_on("users", 40), "privacy.unit=user", "privacy.max_rows_per_unit=4")
SMALL = ("execution.physical_batch_size=64",)
