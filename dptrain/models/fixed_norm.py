"""Batch normalisation whose statistics are constants: a map of each row alone, which may be trained privately."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class FixedNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias, mean and variance being buffers that nothing changes.

    What BatchNorm computes in evaluation mode. It has no other mode, so that ``train()`` cannot start it looking at the
    batch: rows stay apart, and the statistics are those of the public rows that the weights come from.

    Args:
        channels: of (R, C, ...).
        eps: added to the variance.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # (R, C, ...) -> the same
        shape = (1, -1, *[1] * (x.dim() - 2))
        centred = (x - self.running_mean.view(shape)) * torch.rsqrt(self.running_var + self.eps).view(shape)
        return centred * self.weight.view(shape) + self.bias.view(shape)


def fix_batchnorm(module: nn.Module) -> list[str]:
    """Puts a ``FixedNorm`` with the same statistics in the place of every BatchNorm, in place; returns their names."""
    fixed = []
    for name, layer in list(module.named_modules()):
        if type(layer) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) or not isinstance(layer, _BatchNorm):
            continue
        if layer.running_mean is None:
            continue
        norm = FixedNorm(layer.num_features, layer.eps)
        with torch.no_grad():
            for key, value in layer.state_dict().items():
                if key != "num_batches_tracked":
                    norm.state_dict()[key].copy_(value)
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, norm)
        fixed.append(name)
    return fixed
