"""Convolutions of one to three dimensions, by every way, against float64 one row at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bookkeeping_reference import LAYOUTS, agree, batch_of, by_way
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dptrain.gradients.bookkeeping.convolution import Convolved, Shape
from dptrain.gradients.bookkeeping.norms import squared_norms

KINDS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
WAYS = ["loop", "grouped", "bands", "unfolded", "gram", "loop, again", "grouped, again", "bands, again"]


@settings(max_examples=30)
@given(
    dims=st.integers(1, 3),
    groups=st.sampled_from([1, 2]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.sampled_from([0, 1, "same", "valid"]),
    dilation=st.integers(1, 2),
    mode=st.sampled_from(["zeros", "circular", "reflect"]),
    bias=st.booleans(),
    way=st.sampled_from(WAYS),
    layout=st.sampled_from(list(LAYOUTS)),
)
def test_convolutions(
    dims: int, groups: int, kernel: int, stride: int, padding: Any, dilation: int, mode: str, bias: bool, way: str,
    layout: str,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    if padding == "same":  # torch asks for a stride of 1, and warns of even kernels
        stride, kernel = 1, kernel // 2 * 2 + 1
    module = KINDS[dims](4, 2 * groups, kernel, stride, padding, dilation, groups, bias, mode)
    inputs = torch.randn(6, 4, *[7, 6, 5][:dims])
    assert not agree(module, batch_of(inputs, layout), prepare=by_way(way)).without_rule


@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_taken(way: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Tanh(), nn.Conv2d(5, 4, 3, stride=2))
    for layout in ("padded", "unequal"):
        engine = agree(module, batch_of(torch.randn(6, 3, 7, 6), layout), prepare=by_way(way))
        assert not engine.chooser.timings


def test_inputs_that_are_not_contiguous_and_images_of_a_row() -> None:
    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.flatten(0, 1))[None].flatten(1)

    torch.manual_seed(0)
    agree(nn.Conv2d(4, 3, 3), batch_of(torch.randn(6, 7, 6, 4).permute(0, 3, 1, 2), "unequal"))
    agree(Frames(), batch_of(torch.randn(6, 4, 3, 5, 5), "unequal"))
    transposed = agree(nn.ConvTranspose2d(4, 3, 3, stride=2), batch_of(torch.randn(6, 4, 5, 5), "unequal"))
    assert set(transposed.without_rule) == {"conv_transpose2d"}


def test_channels_that_do_not_meet_are_not_taken_for_terms_that_cancel() -> None:
    """Each channel's kernel sees its own channel alone; a bound over all at once would call every unit loud."""
    torch.manual_seed(0)
    x, g = torch.randn(3, 1, 64, 16, 16), torch.randn(3, 1, 64, 16, 16)
    seen = Convolved(x, g, torch.zeros(64, 1, 3, 3), Shape((1, 1), (1, 1), (1, 1), 64))
    assert not len(seen.loud(squared_norms(seen.looped())))
    g[1] = torch.ones(64, 16, 16)
    x[1] = 100.0 + torch.randn(64, 16, 16) * 1e-4
    x[1, :, :, ::2] *= -1.0  # every second row with the other sign: what is left of a channel's terms is small
    found = seen.loud(torch.full((3,), 1e-2, dtype=torch.float64)).tolist()
    assert 1 in found
