"""The Triton kernel in Triton's interpreter, without a GPU: the same pairs as torch operations, bit by bit.

Triton comes with torch for CUDA; elsewhere ``pip install triton`` (some 280 MB), and these tests run.
"""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

pytest.importorskip("triton", reason="needs triton")

from dptrain.noise.aes import on_device, round_keys, tables
from dptrain.noise.device import rounded_by_torch
from dptrain.noise.device_kernel import BLOCK, rounded_by_triton
from dptrain.noise.secure import safe_distance

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("scale", [2.0**-10, 1.0, 1.37 * 2.0**20, 2.0**30, 2.0**36])
@pytest.mark.parametrize("pairs", [1, BLOCK - 1, 5 * BLOCK + 7])
def test_the_kernel_makes_the_pairs_of_torch(scale: float, pairs: int) -> None:
    keys, lookup = on_device(round_keys(bytes(range(32))), DEVICE), on_device(tables(), DEVICE)
    found = [torch.full((pairs, 2), float("nan"), dtype=torch.float64, device=DEVICE) for _ in range(2)]
    doubts = [
        way(keys, lookup, out, scale, safe_distance(scale))
        for way, out in zip((rounded_by_torch, rounded_by_triton), found, strict=True)
    ]
    sure = ~(doubts[0] | doubts[1])
    assert torch.equal(found[0][sure], found[1][sure])
    assert int((doubts[0] != doubts[1]).sum()) <= 2 + pairs // 100  # at the edge of a doubt, the last bit decides
    assert scale == 2.0**36 or int(sure.sum()) >= pairs * 0.98 - 1
