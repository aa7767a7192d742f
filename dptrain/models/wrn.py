"""Wide residual networks with GroupNorm, as used for DP training from scratch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dptrain.errors import ConfigError
from dptrain.models.options import image_shape, truth, whole_number
from dptrain.registry import models

STEM = 16
"""Channels of the first convolution; GroupNorm's groups must divide it."""


class ScaledConv2d(nn.Conv2d):
    """A convolution whose filters are standardised and scaled: mean 0, variance gain^2 / fan-in.

    Scaled weight standardisation, Brock et al. 2021 ("Characterizing signal propagation to close the
    performance gap in unnormalized ResNets"), equation 3. Computed anew in every forward from the
    parameters alone, so no state is kept and rows stay apart.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.gain = nn.Parameter(torch.ones(out_channels, 1, 1, 1))

    def forward(self, input: Tensor) -> Tensor:  # (R, in, H, W) -> (R, out, H', W')
        weight = self.weight  # (out, in, k, k)
        fan_in = weight[0].numel()
        centred = F.layer_norm(weight.flatten(1), (fan_in,), eps=1e-4 / fan_in)  # mean 0, variance 1, in one pass
        standard = centred.view(weight.shape) * (self.gain * fan_in**-0.5)
        return F.conv2d(input, standard, None, self.stride, self.padding)


class Block(nn.Module):
    """norm, relu, conv, norm, relu, conv, added to the input (pre-activation residual block)."""

    def __init__(self, before: int, after: int, stride: int, groups: int, standardise: bool) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, before)
        self.conv1 = _conv(before, after, 3, stride, standardise)
        self.norm2 = nn.GroupNorm(groups, after)
        self.conv2 = _conv(after, after, 3, 1, standardise)
        self.shortcut: nn.Module | None = None
        if stride != 1 or before != after:
            self.shortcut = _conv(before, after, 1, stride, standardise)

    def forward(self, x: Tensor) -> Tensor:  # (R, before, H, W) -> (R, after, H / stride, W / stride)
        ready = F.relu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(ready)
        return kept + self.conv2(F.relu(self.norm2(self.conv1(ready))))


class WideResNet(nn.Module):
    """Three stages of residual blocks, mean over the image, one linear layer."""

    def __init__(
        self, channels: int, num_outputs: int, blocks: int, width: int, groups: int, standardise: bool
    ) -> None:
        super().__init__()
        self.stem = _conv(channels, STEM, 3, 1, standardise)
        stages: list[nn.Module] = []
        before = STEM
        for stage in range(3):
            after = 16 * 2**stage * width
            for block in range(blocks):
                stages.append(Block(before, after, 2 if stage > 0 and block == 0 else 1, groups, standardise))
                before = after
        self.stages = nn.Sequential(*stages)
        self.norm = nn.GroupNorm(groups, before)
        self.head = nn.Linear(before, num_outputs)

    def forward(self, x: Tensor) -> Tensor:  # (R, C, H, W) -> (R, num_outputs)
        return self.head(F.relu(self.norm(self.stages(self.stem(x)))).mean(dim=(2, 3)))


@models.register("wrn")
def wrn(
    input_shape: tuple[int, ...],
    num_outputs: int,
    depth: int = 16,
    width: int = 4,
    groups: int = 16,
    weight_standardization: bool = True,
) -> nn.Module:
    """WRN-depth-width with GroupNorm, (R, C, H, W) -> (R, num_outputs).

    Zagoruyko and Komodakis 2016 with BatchNorm replaced by GroupNorm(16) and optional weight
    standardisation, the changes of De et al. 2022 ("Unlocking high-accuracy differentially private
    image classification through scale", section 4.1).

    Args:
        input_shape: (channels, height, width), at least 8 x 8.
        num_outputs: classes, or 1 for binary and regression.
        depth: 6 n + 4 with n blocks a stage: 10, 16, 22, 28, 34, 40, ...
        width: factor on the channels 16, 32, 64; at least 1.
        groups: groups of every GroupNorm: 1, 2, 4, 8 or 16.
        weight_standardization: standardise the filters of every convolution.

    Raises:
        ConfigError: an option is outside its range, rows are no images or too small.
    """
    channels, _, _ = image_shape("wrn", input_shape, smallest=8)
    whole_number("model.options.depth", depth, low=10)
    if (depth - 4) % 6:
        below = depth - (depth - 4) % 6
        raise ConfigError("model.options.depth", depth, "must be 6 n + 4", f"choose {below} or {below + 6}")
    whole_number("model.options.width", width, low=1)
    whole_number("model.options.groups", groups, low=1)
    if STEM % groups:
        raise ConfigError("model.options.groups", groups, f"does not divide {STEM}", "choose 1, 2, 4, 8 or 16")
    standardise = truth("model.options.weight_standardization", weight_standardization)
    return WideResNet(channels, num_outputs, (depth - 4) // 6, width, groups, standardise)


def _conv(before: int, after: int, size: int, stride: int, standardise: bool) -> nn.Module:
    if standardise:
        return ScaledConv2d(before, after, size, stride, size // 2)
    return nn.Conv2d(before, after, size, stride, size // 2, bias=False)
