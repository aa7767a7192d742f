"""Models and data that some mistakes need."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.registry import models, sources

TOKENS, WORDS = 24, 60
"""Places of a row of ids, and how many ids there are."""


def _strong(layer: nn.Linear | nn.Conv2d) -> Any:
    """The layer with larger weights, so that what is in front of it has a large part in a gradient's norm."""
    with torch.no_grad():
        layer.weight.mul_(4.0)
    return layer


class _Patches(nn.Module):
    """Runs of three pixels with fixed features of their place are 21 tokens; a learned gain a channel behind."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        angle = torch.arange(21.0)[:, None] * torch.linspace(0.3, 1.5, 5)
        self.register_buffer("place", 2.0 * torch.sin(angle), persistent=False)
        self.first = nn.Linear(8, 16)
        self.gain = nn.Parameter(torch.full((16,), 0.5))
        self.again = _strong(nn.Linear(16, 16))
        self.last = _strong(nn.Linear(16, num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        place: Any = self.place
        pixels = x.flatten(1)[:, :63].unflatten(1, (21, 3))
        tokens = torch.cat([pixels, place.expand(len(x), 21, 5)], 2)
        hidden = torch.tanh(self.again(torch.tanh(self.first(tokens))))
        return self.last(hidden.mean(1) * self.gain)


class _Convolved(nn.Module):
    """A convolution with a padded border, then one whose taps are two apart."""

    def __init__(self, side: int, num_outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.second = _strong(nn.Conv2d(8, 8, 3, dilation=2))
        self.last = _strong(nn.Linear(8 * (side - 4) ** 2, num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))).flatten(1))


class _Strided(nn.Module):
    """A convolution of every second place."""

    def __init__(self, side: int, num_outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, stride=2)
        self.last = _strong(nn.Linear(8 * ((side - 1) // 2) ** 2, num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)).flatten(1))


class _Frames(nn.Module):
    """A picture's four quarters go through one convolution as four pictures."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.each = nn.Conv2d(1, 8, 3)
        self.last = _strong(nn.Linear(32, num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        quarters = x.reshape(-1, 2, 4, 2, 4).permute(0, 1, 3, 2, 4).reshape(-1, 1, 4, 4)
        return self.last(torch.tanh(self.each(quarters)).flatten(1).unflatten(0, (-1, 4)).mean(1))


class _Adapted(nn.Module):
    """A frozen map with an adapter of rank 4 beside it, scaled by 3."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(width, 32).requires_grad_(False)
        self.lora_a, self.lora_b = nn.Linear(width, 4, bias=False), nn.Linear(4, 32, bias=False)
        self.last = nn.Linear(32, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return self.last(torch.tanh(self.base(flat) + 3.0 * self.lora_b(self.lora_a(flat))))


class _Normed(nn.Module):
    """A hidden map between layer and group norms."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.first, self.layer = _strong(nn.Linear(width, 32)), nn.LayerNorm(32)
        self.group = nn.GroupNorm(4, 8)
        self.last = _strong(nn.Linear(32, num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(self.first(x.flatten(1)))
        return self.last(self.group(torch.tanh(hidden).unflatten(1, (8, 4))).flatten(1))


class _Standardised(nn.Module):
    """A map by its weight less the weight's mean."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, width) / width**0.5)
        self.last = nn.Linear(32, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(1, keepdim=True)
        return self.last(torch.tanh(F.linear(x.flatten(1), weight)))


class _Recurrent(nn.Module):
    """Rows of a picture as time steps of an LSTM both ways, or of a GRU."""

    def __init__(self, layer: nn.LSTM | nn.GRU, width: int, num_outputs: int) -> None:
        super().__init__()
        self.layer = layer
        self.last = _strong(nn.Linear(width, num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x.flatten(1, 2))[0].mean(1))


class _Attending(nn.Module):
    """Rows of a picture as tokens that attend to each other."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, 16) for _ in range(3))
        self.last = nn.Linear(16, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x.flatten(1, 2))[:, None] for layer in (self.query, self.key, self.value))
        return self.last(F.scaled_dot_product_attention(q, k, v)[:, 0].mean(1))


class _Pooled(nn.Module):
    """Token ids through a table and a map; all places are averaged, empty ones too."""

    takes_ids = True

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 16)
        self.each = nn.Linear(16, 16)
        self.last = nn.Linear(16, num_outputs)

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(torch.tanh(self.each(self.table(ids))).mean(1))


class _AnyLength(nn.Module):
    """Token ids through a table; the mean over a row's own tokens, whatever padding follows."""

    takes_ids = True
    any_length = True
    pad = 0

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 16)
        self.last = nn.Linear(16, num_outputs)

    def forward(self, ids: Tensor) -> Tensor:
        own = (ids != 0)[:, :, None].float()
        return self.last((torch.tanh(self.table(ids)) * own).sum(1) / own.sum(1).clamp(min=1.0))


def _lstm(shape: tuple[int, ...], outputs: int) -> nn.Module:
    return _Recurrent(nn.LSTM(shape[-1], 12, batch_first=True, bidirectional=True), 24, outputs)


def _gru(shape: tuple[int, ...], outputs: int) -> nn.Module:
    return _Recurrent(nn.GRU(shape[-1], 16, batch_first=True), 16, outputs)


def _size(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


models.register("list_four_patches")(lambda input_shape, num_outputs: _Patches(num_outputs))
models.register("list_four_convolved")(lambda input_shape, num_outputs: _Convolved(input_shape[-1], num_outputs))
models.register("list_four_strided")(lambda input_shape, num_outputs: _Strided(input_shape[-1], num_outputs))
models.register("list_four_frames")(lambda input_shape, num_outputs: _Frames(num_outputs))
models.register("list_four_adapted")(lambda input_shape, num_outputs: _Adapted(_size(input_shape), num_outputs))
models.register("list_four_normed")(lambda input_shape, num_outputs: _Normed(_size(input_shape), num_outputs))
models.register("list_four_standard")(lambda input_shape, num_outputs: _Standardised(_size(input_shape), num_outputs))
models.register("list_four_lstm")(lambda input_shape, num_outputs: _lstm(input_shape, num_outputs))
models.register("list_four_gru")(lambda input_shape, num_outputs: _gru(input_shape, num_outputs))
models.register("list_four_attending")(lambda input_shape, num_outputs: _Attending(input_shape[-1], num_outputs))
models.register("list_four_pooled")(lambda input_shape, num_outputs: _Pooled(num_outputs))
models.register("list_four_lengths")(lambda input_shape, num_outputs: _AnyLength(num_outputs))


@sources.register("list_four_tokens")
def tokens(config: Any, seed: int) -> Source:
    """600 rows of 1 to 24 token ids out of 1 to 59, each as likely; 0 pads the end; four classes."""

    def load() -> Splits:
        generator = torch.Generator().manual_seed(41)
        ids = torch.randint(1, WORDS, (700, TOKENS), generator=generator)
        length = torch.randint(1, TOKENS + 1, (700, 1), generator=generator)
        ids = torch.where(torch.arange(TOKENS) < length, ids, 0)
        rows = Rows(ids, ids[:, 0] % 4)
        return Splits(train=rows.take(torch.arange(600)), public=rows.take(torch.arange(600, 700)))

    info = SourceInfo(
        name="list_four_tokens",
        task="multiclass",
        input_shape=(TOKENS,),
        num_classes=4,
        public_size=600,
        is_public=True,
        vocabulary=WORDS,
    )
    return Source(info, load)


@sources.register("list_four_users")
def users(config: Any, seed: int) -> Source:
    """240 users of one to four rows each, in no order; six columns, three classes."""

    def load() -> Splits:
        generator = torch.Generator().manual_seed(43)
        owner = torch.repeat_interleave(torch.arange(300), torch.arange(300) % 4 + 1)
        centre = torch.randn(300, 6, generator=generator)
        inputs = (torch.randn(len(owner), 6, generator=generator) + centre[owner]).clamp(-3, 3)
        rows = Rows(inputs, inputs[:, :3].argmax(1), owner)
        order = torch.randperm(len(owner), generator=generator)
        train, public = order[owner[order] < 240], order[owner[order] >= 240]
        return Splits(train=rows.take(train), public=rows.take(public))

    info = SourceInfo(
        name="list_four_users",
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
    return "model=own", f"model.name=list_four_{model}"


def _on(source: str, batch: int) -> tuple[str, ...]:
    return "data=own", f"data.name=list_four_{source}", f"privacy.expected_batch_size={batch}"


POOLED = (*_on("tokens", 60), *own("pooled"))
LENGTHS = (
    *_on("tokens", 60),
    *own("lengths"),
    "execution.length_buckets=[6,12,18]",
    "execution.physical_batch_size=24",
)
USERS = (*_on("users", 40), "privacy.unit=user", "privacy.max_rows_per_unit=4")
VMAP = ("clipping.engine=vmap",)
LIMIT = ("execution.memory_limit=0",)
