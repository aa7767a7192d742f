"""Further models: common ones, each with something that an engine written for the main table may stumble over."""

from __future__ import annotations

import importlib
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .finetune import FINETUNE
from .workloads import Made, TransformerBlock, Workload, pictures, sentences


class VisionTransformer(nn.Module):
    """Patches of 4x4, places as an embedding, six blocks of width 192, mean over patches; for 32x32 pictures."""

    def __init__(self, width: int = 192, layers: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.places = nn.Embedding(64, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, 3) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(64, device=x.device).repeat(len(x), 1)
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places(places)
        return self.head(self.norm(self.blocks(tokens)).mean(1))


class TorchVisionTransformer(nn.Module):
    """The same of torch's own encoder layers, with class token and places as bare parameters."""

    def __init__(self, width: int = 192, layers: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, 65, width))
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(width, 3, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
                for _ in range(layers)
            )
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(len(x), -1, -1), tokens], 1) + self.places
        return self.head(self.blocks(tokens)[:, 0])


class PostNormBlock(nn.Module):
    """Convolution and norm, twice, beside a shortcut (He et al. 2016, with GroupNorm)."""

    def __init__(self, wide_in: int, wide: int, stride: int) -> None:
        super().__init__()
        self.left = nn.Sequential(
            nn.Conv2d(wide_in, wide, 3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(32, wide),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, padding=1, bias=False),
            nn.GroupNorm(32, wide),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or wide_in != wide:
            self.shortcut = nn.Sequential(
                nn.Conv2d(wide_in, wide, 1, stride=stride, bias=False), nn.GroupNorm(32, wide)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.left(x) + self.shortcut(x))


def resnet18() -> nn.Module:
    """ResNet-18 with GroupNorm(32) and a 3x3 stem, for 32x32 pictures."""
    blocks: list[nn.Module] = [nn.GroupNorm(32, 64), nn.ReLU()]
    width = 64
    for wide in (64, 128, 256, 512):
        blocks += [PostNormBlock(width, wide, 1 if wide == 64 else 2), PostNormBlock(wide, wide, 1)]
        width = wide
    return _with_stem(nn.Conv2d(3, 64, 3, padding=1, bias=False), *blocks, *_pooled(512))


def _with_stem(stem: nn.Module, *rest: nn.Module) -> nn.Module:
    """Layers in a row, the first under a name of its own, which fastDP's origin list can single out."""
    return nn.Sequential(OrderedDict(stem=stem, rest=nn.Sequential(*rest)))


def _pooled(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]


class Recurrent(nn.Module):
    """Characters, one LSTM layer of 256, a classifier of its last output.

    Args:
        opacus: build Opacus' LSTM, which computes the same out of layers that have rules.
    """

    def __init__(self, opacus: bool) -> None:
        super().__init__()
        layer: Any = importlib.import_module("opacus.layers").DPLSTM if opacus else nn.LSTM
        self.characters = nn.Embedding(100, 128)
        self.recurrent = layer(128, 256, batch_first=True)
        self.head = nn.Linear(256, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.recurrent(self.characters(ids))[0][:, -1])


def _twice(wide_in: int, wide: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(wide_in, wide, 3, padding=1),
        nn.GroupNorm(8, wide),
        nn.ReLU(),
        nn.Conv2d(wide, wide, 3, padding=1),
        nn.GroupNorm(8, wide),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """Two levels down and up again with skips (Ronneberger et al. 2015), upsampling by nearest neighbours."""

    def __init__(self, width: int = 32, classes: int = 4) -> None:
        super().__init__()
        self.down1, self.down2 = _twice(3, width), _twice(width, 2 * width)
        self.bottom = _twice(2 * width, 4 * width)
        self.up2, self.up1 = _twice(6 * width, 2 * width), _twice(3 * width, width)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down1(x)
        coarse = self.down2(F.max_pool2d(fine, 2))
        deep = self.bottom(F.max_pool2d(coarse, 2))
        coarse = self.up2(torch.cat([coarse, F.interpolate(deep, scale_factor=2.0)], 1))
        return self.head(self.up1(torch.cat([fine, F.interpolate(coarse, scale_factor=2.0)], 1)))


def maps(rows: int, g: torch.Generator) -> Made:
    """Random pictures with one of four classes for every pixel."""
    return torch.randn(rows, 3, 32, 32, generator=g), torch.randint(0, 4, (rows, 32, 32), generator=g)


class FrozenNorm(nn.BatchNorm2d):
    """BatchNorm that stays as pretraining left it: never trained, never in training mode."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenNorm:
        return super().train(False)


class MobileBlock(nn.Module):
    """Widen, depthwise convolution, narrow; a shortcut where shapes agree (Sandler et al. 2018)."""

    def __init__(self, wide_in: int, wide: int, widen: int, stride: int, kernel: int) -> None:
        super().__init__()
        middle = wide_in * widen
        parts: list[nn.Module] = []
        if widen > 1:
            parts += [nn.Conv2d(wide_in, middle, 1, bias=False), FrozenNorm(middle), nn.ReLU6()]
        depthwise = nn.Conv2d(middle, middle, kernel, stride=stride, padding=kernel // 2, groups=middle, bias=False)
        parts += [depthwise, FrozenNorm(middle), nn.ReLU6()]
        self.parts = nn.Sequential(*parts, nn.Conv2d(middle, wide, 1, bias=False), FrozenNorm(wide))
        self.has_shortcut = stride == 1 and wide_in == wide

    def forward(self, x: Tensor) -> Tensor:
        return x + self.parts(x) if self.has_shortcut else self.parts(x)


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-lite0 (Tan and Le 2019, without squeeze and excitation), frozen BatchNorm, ten classes."""
    # (widen, channels, blocks, stride, kernel)
    stages = [
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    ]
    parts: list[nn.Module] = [FrozenNorm(32), nn.ReLU6()]
    width = 32
    for widen, wide, blocks, stride, kernel in stages:
        for place in range(blocks):
            parts.append(MobileBlock(width, wide, widen, 1 if place else stride, kernel))
            width = wide
    parts += [nn.Conv2d(width, 1280, 1, bias=False), FrozenNorm(1280), nn.ReLU6()]
    return _with_stem(nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False), *parts, *_pooled(1280))


class MiniLM(nn.Module):
    """BERT of transformers in the shape of MiniLM-L6 with random weights, without dropout; needs ``transformers``."""

    def __init__(self) -> None:
        super().__init__()
        library: Any = importlib.import_module("transformers")
        shape = library.BertConfig(
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=1536,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=2,
        )
        self.bert = library.BertForSequenceClassification(shape)

    def forward(self, ids: Tensor) -> Tensor:
        return self.bert(input_ids=ids).logits


_CHARACTERS = sentences(64, vocabulary=100)

FURTHER = {
    "vit": Workload(
        "ViT 6x192, patches of 4, B32",
        VisionTransformer,
        32,
        pictures(3, 32, 32),
        adam=True,
        origin=("patches.bias", "places"),
    ),
    "vit_torch": Workload(
        "the same of torch's encoder layers, bare parameters", TorchVisionTransformer, 32, pictures(3, 32, 32), True
    ),
    "resnet18_gn": Workload("ResNet-18 GroupNorm, B16", resnet18, 16, pictures(3, 32, 32), origin=("stem.weight",)),
    "lstm": Workload(
        "LSTM 256, T64, B32 (Opacus: its DPLSTM)",
        lambda: Recurrent(opacus=False),
        32,
        _CHARACTERS,
        peer_build=lambda: Recurrent(opacus=True),
    ),
    "unet": Workload("U-Net of width 32, 32x32 maps, B16", UNet, 16, maps, origin=("down1.0.bias",)),
    "minilm": Workload(
        "MiniLM-L6 of transformers, T128, B8",
        MiniLM,
        8,
        sentences(128),
        adam=True,
        origin=("word_embeddings", "position_embeddings", "token_type_embeddings"),
    ),
    "effnet_lite0": Workload(
        "EfficientNet-lite0, 64x64, frozen BatchNorm, B16",
        efficientnet_lite0,
        16,
        pictures(3, 64, 64),
        origin=("stem.weight",),
    ),
    **FINETUNE,
}
