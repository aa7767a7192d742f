"""Small models that between them use every kind of layer an engine has a rule for, and rows for them.

A rule that is wrong is wrong for whoever's model has such a layer; so it is looked at whatever the user's model is.
Each is tiny: a few hundred parameters, so that float64 autograd, one row at a time, takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 3


@dataclass(frozen=True)
class Kind:
    """One model: how it is built, and the shape of its rows."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    ids: int = 0
    """Rows are token ids below this; 0: real numbers."""
    cancels: bool = False
    """Tokens nearly cancel, so that a unit's gradient is far shorter than the sum of its terms."""
    many: bool = False
    """Whether it is asked of more than 512 units at once, too."""


class Pooled(nn.Module):
    """A body on tokens (1, T, d), the mean of what it gives, and a last map."""

    def __init__(self, body: nn.Module, width: int, first: nn.Module | None = None, last: bool = True) -> None:
        super().__init__()
        self.first, self.body = first or nn.Identity(), body
        self.last = nn.Linear(width, CLASSES) if last else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(self.first(x))
        out = out[0] if isinstance(out, tuple) else out
        return self.last(out.mean(1))


class Attended(nn.Module):
    """Attention of tokens to those that are no padding (id 0), with learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.place = nn.Embedding(11, 6, padding_idx=0), nn.Parameter(0.1 * torch.randn(5, 6))
        self.mixed, self.last = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + self.place
        hidden = (ids == 0) & (torch.arange(ids.shape[1], device=ids.device) > 0)  # the first is always there
        return self.last(self.mixed(x, x, x, key_padding_mask=hidden, need_weights=False)[0].mean(1))


class Tied(nn.Module):
    """A table that is looked up and, turned, gives the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner = nn.Embedding(9, 5), nn.Linear(5, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.inner(self.table(ids))), self.table.weight).mean(1)[:, :CLASSES]


class Adapted(nn.Module):
    """A frozen map with a low-rank change beside it (LoRA), behind a frozen table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.base = nn.Embedding(9, 6).requires_grad_(False), nn.Linear(6, 6).requires_grad_(False)
        self.down, self.up, self.last = nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False), nn.Linear(6, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.last(torch.tanh(self.base(x) + 0.5 * self.up(self.down(x))).mean(1))


class Reused(nn.Module):
    """One map used twice, a weight that is scaled before use, a gain, a map by plain products, and a learned slope."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.scaled = nn.Linear(6, 6), nn.Parameter(torch.randn(6, 6))
        self.gain, self.product, self.slope = nn.Parameter(torch.ones(6)), nn.Parameter(torch.randn(6, 4)), nn.PReLU(4)
        self.last = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.twice(torch.tanh(self.twice(x))))
        x = F.linear(x, 0.5 * self.scaled) * self.gain
        return self.last(self.slope(x @ self.product))


class Norms(nn.Module):
    """The layers that normalise what one row holds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.root, self.of_places = nn.LayerNorm(6), nn.RMSNorm(6), nn.InstanceNorm1d(4, affine=True)
        self.group, self.map, self.last = nn.GroupNorm(2, 4), nn.Linear(6, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.of_places(self.root(self.map(self.layer(x))))
        return self.last(self.group(x + 1.0).mean(1))


def _picture() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2),
        nn.GroupNorm(3, 6),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, CLASSES),
    )


def _wide_picture() -> nn.Module:
    """Enough outputs, and few enough places, for every way that a convolution may be computed in."""
    return nn.Sequential(
        nn.Conv2d(5, 12, 3, padding=1), nn.Tanh(), nn.Conv2d(12, 33, (2, 5), groups=3, stride=(1, 2), padding=(0, 1)),
        nn.Tanh(), nn.Flatten(2), nn.Conv1d(33, 9, 3), nn.Flatten(), nn.Linear(36, CLASSES),
    )  # fmt: skip


def _signal() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(4, 4, 3, groups=4, padding=1, bias=False),
        nn.Conv1d(4, 70, 1),
        nn.Tanh(),
        nn.Conv1d(70, 2, 5, stride=3),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )


def _volume() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 3, 2, bias=True), nn.Tanh(), nn.Flatten(), nn.Linear(24, CLASSES))


KINDS: dict[str, Kind] = {
    "wide maps": Kind(lambda: nn.Sequential(nn.Linear(70, 66), nn.ReLU(), nn.Linear(66, CLASSES, bias=False)), (70,)),
    "few tokens": Kind(lambda: Pooled(nn.Sequential(nn.Linear(9, 12), nn.Tanh()), 12), (3, 9), many=True),
    "many tokens": Kind(lambda: Pooled(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), 4), (37, 3)),
    "tokens that cancel": Kind(lambda: Pooled(nn.Linear(5, CLASSES), CLASSES, last=False), (24, 5), cancels=True),
    "repeated tokens": Kind(
        lambda: Pooled(nn.Sequential(nn.Linear(6, 6), nn.Tanh()), 6, nn.Embedding(12, 6, padding_idx=0)),
        (9,),
        ids=12,
        many=True,
    ),
    "tied table": Kind(Tied, (6,), ids=9),
    "low-rank change": Kind(Adapted, (5,), ids=9),
    "attention": Kind(Attended, (5,), ids=11),
    "encoder": Kind(
        lambda: Pooled(nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True, norm_first=True), 6), (4, 6)
    ),
    "pictures": Kind(_picture, (2, 8, 8), many=True),
    "wide pictures": Kind(_wide_picture, (5, 4, 5)),
    "signals": Kind(_signal, (4, 14)),
    "volumes": Kind(_volume, (1, 3, 3, 3)),
    "norms": Kind(Norms, (4, 6)),
    "LSTM": Kind(lambda: Pooled(nn.LSTM(4, 3, num_layers=2, bidirectional=True, batch_first=True), 6), (5, 4)),
    "GRU": Kind(lambda: Pooled(nn.GRU(4, 5, batch_first=True), 5), (5, 4)),
    "RNN": Kind(lambda: Pooled(nn.RNN(4, 5, batch_first=True), 5), (5, 4)),
    "parameters used in other ways": Kind(Reused, (6,)),
}
