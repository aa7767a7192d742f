"""Secure noise made on a CUDA device: the values that the processor makes of the same keys."""

from __future__ import annotations

import pytest
import torch

from dptrain.keystream import Keystream
from dptrain.noise import device
from dptrain.noise.device import DeviceNoise

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

KEY = bytes(range(7, 39))


@pytest.mark.parametrize("triton", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1.37 * 2.0**20, 2.0**30, 2.0**36])
def test_values_are_the_processor_s(scale: float, triton: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not triton:
        monkeypatch.setattr(device, "fastest", lambda _: device.rounded_by_torch)
    expected = DeviceNoise(Keystream(test_key=KEY), scale, torch.device("cpu")).draw(3, 100_001)
    found = DeviceNoise(Keystream(test_key=KEY), scale, torch.device("cuda")).draw(3, 100_001)
    assert found.device.type == "cuda"
    assert torch.equal(found.cpu(), expected)
