"""Noise made on a device: value by value what the processor's path makes of the same words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats
from torch import Tensor

from dptrain.errors import ConfigError
from dptrain.keystream import Keystream, Purpose
from dptrain.noise import device
from dptrain.noise.device import DeviceNoise, check_device, rounded_by_torch
from dptrain.noise.secure import SecureNoise, round_pairs, settle

CPU, KEY = torch.device("cpu"), bytes(range(7, 39))


def by_the_processor(step: int, count: int, scale: float) -> tuple[np.ndarray, int]:
    """The noise of that step by the library's AES and ``secure``'s transform and exact path; pairs settled."""
    pairs = -(-count // 2)
    own = Keystream(test_key=KEY).open(Purpose.NOISE_DEVICE, step).fill(np.empty(32, dtype=np.uint8)).tobytes()
    stream = Cipher(algorithms.AES(own), modes.CTR(bytes(16))).encryptor().update(bytes(16 * pairs))
    words = np.ascontiguousarray(np.frombuffer(stream, dtype=np.int64).reshape(-1, 2).T).reshape(-1)
    out, work = np.empty(2 * pairs), np.empty((2, 2 * pairs))
    undecided = round_pairs(words, scale, out, work)
    settle(undecided, words, scale, out, Keystream(test_key=KEY).open(Purpose.NOISE_TIE, step))
    return out.reshape(2, -1).T.reshape(-1)[:count], len(undecided)


@pytest.mark.parametrize("scale", [2.0**-10, 1.0, 1.37 * 2.0**20, 2.0**30, 2.0**36])
def test_values_are_the_processor_s(scale: float) -> None:
    """Also where several chunks are worked on, at an odd count, and where hundreds of pairs are settled exactly."""
    count = 2 * device.PAIRS + 1
    expected, settled = by_the_processor(5, count, scale)
    found = DeviceNoise(Keystream(test_key=KEY), scale, CPU).draw(5, count)
    assert found.dtype == torch.float64 and found.shape == (count,)
    np.testing.assert_array_equal(found.numpy(), expected)
    assert settled > 50 or scale < 2.0**36


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = DeviceNoise(Keystream(test_key=KEY), 2.0**20, CPU).draw(0, 5000)
    monkeypatch.setattr(device, "CHUNK", 700)
    assert torch.equal(DeviceNoise(Keystream(test_key=KEY), 2.0**20, CPU).draw(0, 5000), whole)
    pieces = list(DeviceNoise(Keystream(test_key=KEY), 2.0**20, CPU).pieces(0, 5000))
    assert torch.equal(torch.cat(pieces), whole)


def test_every_step_has_a_key_of_its_own_and_none_comes_twice() -> None:
    noise = DeviceNoise(Keystream(), 2.0**20, CPU)
    first, second = noise.draw(0, 4096), noise.draw(1, 4096)
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 6 / 64  # 6 deviations: 2e-9
    with pytest.raises(RuntimeError, match="NOISE_DEVICE of step 1 was already drawn"):
        noise.draw(1, 2)


def test_the_law_is_a_rounded_gaussian_s() -> None:
    """Kolmogorov's test of 100,000 values under a fresh key; false alarms 1e-6."""
    scale = 2.0**20
    values = DeviceNoise(Keystream(), scale, CPU).draw(0, 100_000)
    assert torch.equal(values, values.round())
    assert stats.kstest(values.numpy() / scale, "norm").pvalue > 1e-6


def test_distance_and_range_are_those_of_the_processor_s_noise() -> None:
    noise = DeviceNoise(Keystream(), 8.0, CPU)
    assert noise.name == SecureNoise.name
    assert noise.distance(10**9) == SecureNoise(Keystream(), 8.0).distance(10**9)
    with pytest.raises(ConfigError, match=r"privacy\.noise_multiplier"):
        DeviceNoise(Keystream(), 2.0**37, CPU)


def _float32(keys: Tensor, lookup: Tensor, out: Tensor, scale: float, safe: float) -> Tensor:
    """A device whose arithmetic is float32."""
    doubtful = rounded_by_torch(keys, lookup, out, scale, safe)
    out.copy_((out / scale).float().double() * scale).round_()
    return doubtful


def _always_doubts(keys: Tensor, lookup: Tensor, out: Tensor, scale: float, safe: float) -> Tensor:
    return torch.ones_like(rounded_by_torch(keys, lookup, out, scale, safe))


def _another_word(keys: Tensor, lookup: Tensor, out: Tensor, scale: float, safe: float) -> Tensor:
    return rounded_by_torch(keys.flip(0), lookup, out, scale, safe)


@pytest.mark.parametrize("rounded", [_float32, _always_doubts, _another_word])
def test_a_device_that_computes_otherwise_is_refused(rounded: device.Rounded) -> None:
    lookup = device.on_device(device.tables(), CPU)
    with pytest.raises(ConfigError, match=r"noise_device=model: .* set execution\.noise_device=cpu"):
        check_device(rounded, lookup, 2.0**30)
    for scale in (2.0**-10, 2.0**20, 2.0**36):
        check_device(rounded_by_torch, lookup, scale)
