"""EfficientNet-lite0 with fixed batch statistics, from a folder of ImageNet weights: 1,280 features.

Tan and Le 2019, "EfficientNet", in the form without squeeze-and-excitation and with ReLU6 (EfficientNet-lite). Names of
tensors are those of ``efficientnet_lite_pytorch``, so that its weights fit as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dptrain.errors import ConfigError
from dptrain.models.fixed_norm import FixedNorm
from dptrain.models.hf import weight_files
from dptrain.models.options import image_shape, truth, whole_number
from dptrain.registry import models

STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
"""Expansion, channels, blocks, stride and kernel of each stage (Tan and Le 2019, table 1)."""
STEM, FEATURES, EPS = 32, 1280, 1e-3


class SameConv(nn.Conv2d):
    """A convolution padded so that an output is as large as its input over the stride, more on the far side if odd."""

    def forward(self, input: Tensor) -> Tensor:  # (R, C, H, W) -> (R, C', ceil(H / s), ceil(W / s))
        kernel, stride = self.kernel_size[0], self.stride[0]
        need = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in input.shape[2:]]
        padded = F.pad(input, (need[1] // 2, need[1] - need[1] // 2, need[0] // 2, need[0] - need[0] // 2))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Block(nn.Module):
    """Widen, filter each channel alone, narrow; added to the input where shapes allow."""

    def __init__(self, before: int, after: int, widen: int, stride: int, kernel: int) -> None:
        super().__init__()
        wide = before * widen
        self._expand_conv = SameConv(before, wide, 1, bias=False) if widen > 1 else None
        self._bn0 = FixedNorm(wide, EPS) if widen > 1 else None
        self._depthwise_conv = SameConv(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = FixedNorm(wide, EPS)
        self._project_conv = SameConv(wide, after, 1, bias=False)
        self._bn2 = FixedNorm(after, EPS)
        self.adds = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:  # (R, before, H, W) -> (R, after, H / stride, W / stride)
        y = x
        if self._expand_conv is not None and self._bn0 is not None:
            y = F.relu6(self._bn0(self._expand_conv(y)))
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class Body(nn.Module):
    """Pictures (R, 3, H, W) in [-1, 1] -> features (R, 1280)."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, STEM, 3, 2, bias=False)
        self._bn0 = FixedNorm(STEM, EPS)
        blocks, before = [], STEM
        for widen, after, count, stride, kernel in STAGES:
            for place in range(count):
                blocks.append(Block(before, after, widen, 1 if place else stride, kernel))
                before = after
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv(before, FEATURES, 1, bias=False)
        self._bn1 = FixedNorm(FEATURES, EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean(dim=(2, 3))


class ImageClassifier(nn.Module):
    """A body, and a linear layer on its features. Rows (R, C, H, W) in [0, 1], or features (R, F), are taken.

    Args:
        body: (R, 3, S, S) in [-1, 1] -> (R, F).
        head: (R, F) -> (R, num_outputs).
        size: S; pictures are brought to it bilinearly; grey ones are taken three times.
        normalise: whether features are brought to length 1.
        mean, std: what is taken off each channel in [0, 1], and by what the rest is divided; halves bring it to
            [-1, 1].
    """

    def __init__(
        self,
        body: nn.Module,
        head: nn.Module,
        size: int,
        normalise: bool,
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        std: tuple[float, ...] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        self.body, self.head, self.size, self.normalise = body, head, size, normalise
        self.mean, self.std = mean, std

    def features(self, rows: Tensor) -> Tensor:  # (R, C, H, W) -> (R, F)
        """What the body makes of each picture."""
        rows = rows.expand(-1, 3, -1, -1) if rows.shape[1] == 1 else rows
        if rows.shape[2:] != (self.size, self.size):
            rows = F.interpolate(rows, (self.size, self.size), mode="bilinear", align_corners=False)
        mean, std = (rows.new_tensor(three)[:, None, None] for three in (self.mean, self.std))
        made = self.body((rows - mean) / std)
        return F.normalize(made, dim=1) if self.normalise else made

    def mapped(self, rows: Tensor) -> Tensor:  # (R, C, H, W) -> (R, F)
        """As ``features``: what a frozen body makes once."""
        return self.features(rows)

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.features(rows) if rows.dim() == 4 else rows)


@models.register("efficientnet_lite0")
def efficientnet_lite0(
    input_shape: tuple[int, ...], num_outputs: int, size: int = 96, normalise: bool = False, zero_init: bool = False
) -> nn.Module:
    """The network with random weights, (R, 1 or 3, H, W) in [0, 1] -> (R, num_outputs).

    Args:
        input_shape: of a picture, at least 8 x 8.
        num_outputs: classes, or 1 for binary and regression.
        size: side to which pictures are brought, in [32, 512].
        normalise: bring features to length 1.
        zero_init: start the linear layer at zero.

    Raises:
        ConfigError: rows are no pictures of one or three channels, or an option is outside its range.
    """
    channels, _, _ = image_shape("efficientnet_lite0", input_shape, smallest=8)
    if channels not in (1, 3):
        problem = f"takes pictures of 1 or 3 channels; rows have {channels}"
        raise ConfigError("model", "efficientnet_lite0", problem, "choose model=wrn")
    whole_number("model.options.size", size, low=32, high=512)
    head = nn.Linear(FEATURES, num_outputs)
    if truth("model.options.zero_init", zero_init):
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    return ImageClassifier(Body(), head, size, truth("model.options.normalise", normalise))


def describe(path: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as they are: one folder, one network."""
    weight_files(path)
    return dict(options)


def fill_from(module: nn.Module, path: str) -> None:
    """Fills the body with the folder's weights; the head, made for other classes, stays.

    Raises:
        ConfigError: a tensor is missing or has another shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    held: dict[str, Tensor] = {}
    try:
        for file in weight_files(path):
            held |= load_file(file)
    except (OSError, SafetensorError) as error:
        raise ConfigError("model.path", path, f"its weights cannot be read ({error})", "fetch them again") from error
    for name, target in module.get_submodule("body").state_dict().items():
        value = held.get(name)
        if value is None or value.shape != target.shape:
            remedy = "give the folder that scripts/fetch_data.sh filled"
            raise ConfigError("model.path", path, f"lacks '{name}' of shape {tuple(target.shape)}", remedy)
        with torch.no_grad():
            target.copy_(value)
