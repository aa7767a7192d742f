"""The default noise made on the model's own device: the same law, from the same kind of key, without the processor.

A step's noise is what ``SecureNoise`` would return for the words of that step's keystream: two 64-bit words a pair, a
float64 Box-Muller transform with a proved error, and, where that error could change a rounding, the exact path of the
processor. Keystream and transform are torch operations, or one Triton kernel; which of them ran cannot be seen in the
result, because a rounding is only taken where every computation within the bound agrees (docs/noise.md, section 6).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from dptrain.errors import ConfigError
from dptrain.keystream import Keystream, Purpose
from dptrain.noise.aes import keystream_words, on_device, round_keys, tables
from dptrain.noise.exact import rounded_pair
from dptrain.noise.secure import CUT, PAIRS, SecureNoise, certain, safe_distance

CHUNK = 1 << 21
"""Pairs that torch operations work on at once: 16 bytes of words a pair, and some ten times that of scratch."""

Rounded = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]
"""(round keys, look-up tables, out (P, 2) float64 to write, S, safe distance) -> (P,) bool: pairs in doubt."""


class DeviceNoise:
    """Exact samples of round(N(0, S^2)) on a device, independent across coordinates and steps.

    Guarantee: that of ``SecureNoise``, with a key of its own for every step: 32 bytes of the run's keystream at an
    address that is used once, expanded by AES-256 in counter mode. Assumes of the device IEEE-754 float64 arithmetic
    and log and sin within 16 units in the last place; before the first noise, ``PAIRS`` pairs are held against the
    processor's transform, and a device that rounds one of them otherwise is refused.

    Args:
        keystream: source of the steps' keys (``Purpose.NOISE_DEVICE``) and of the bits that settle doubtful pairs.
        std_in_grid_steps: S, as in ``SecureNoise``.
        device: where noise is made and stays.

    Raises:
        ConfigError: S is out of range, or the device computes otherwise than the proof assumes.
    """

    name = "secure"

    def __init__(self, keystream: Keystream, std_in_grid_steps: float, device: torch.device) -> None:
        law = SecureNoise(keystream, std_in_grid_steps)  # for its range and its distance
        self.scale = law.scale
        self.distance = law.distance
        self._keystream, self._device = keystream, device
        self._lookup = on_device(tables(), device)
        self._rounded = fastest(device)
        check_device(self._rounded, self._lookup, self.scale)

    def draw(self, step: int, count: int) -> Tensor:
        """(count,) float64 whole numbers on the device. See ``Noise``."""
        key = self._keystream.open(Purpose.NOISE_DEVICE, step).fill(np.empty(32, dtype=np.uint8)).tobytes()
        keys = on_device(round_keys(key), self._device)
        out = torch.empty((-(-count // 2), 2), dtype=torch.float64, device=self._device)
        safe = safe_distance(self.scale)
        doubtful = torch.nonzero(self._rounded(keys, self._lookup, out, self.scale, safe)).flatten()
        if len(doubtful):
            self._settle(step, keys, doubtful, out)
        return out.view(-1)[:count]

    def pieces(self, step: int, count: int) -> Iterator[Tensor]:
        """See ``Noise``: all of it at once, as it lies on the device."""
        return iter([self.draw(step, count)])

    def _settle(self, step: int, keys: Tensor, doubtful: Tensor, out: Tensor) -> None:
        """Looks at doubtful pairs one by one, with a pair's own bound first, then exactly; in rising order."""
        words = keystream_words(keys, self._lookup, doubtful)
        normals = transform(words, self.scale)
        words, gaps = words.cpu().numpy(), (normals - normals.round()).abs().cpu().numpy()
        with np.errstate(invalid="ignore"):
            left = np.flatnonzero(~certain(words[:, 0], gaps[:, 0], gaps[:, 1], self.scale))
        if not len(left):
            return
        ties = self._keystream.open(Purpose.NOISE_TIE, step)
        exact = [rounded_pair(int(words[i, 0]), int(words[i, 1]), self.scale, ties) for i in left.tolist()]
        places = doubtful[torch.from_numpy(left).to(self._device)]
        out[places] = torch.tensor(exact, dtype=torch.float64, device=self._device)


def uniforms(words: Tensor) -> Tensor:
    """(P, 2) int64 words -> (P,) float64 U, the radius word's low 63 bits."""
    return (words[:, 0] & ((1 << 63) - 1)).double() * 2.0**-63


def transform(words: Tensor, scale: float) -> Tensor:
    """(P, 2) int64 words, radius and angle -> (P, 2) float64 normals, unrounded. See ``secure.transform``."""
    radius, angle = words.unbind(1)
    length = torch.sqrt(torch.log(uniforms(words)) * (-8.0 * scale * scale))  # 2 S r
    length = torch.where(radius < 0, -length, length)
    sine = torch.sin(angle.double() * (0.5 * math.pi * 2.0**-64))
    square = sine * sine
    return torch.stack([(0.5 - square) * length, torch.sqrt(1.0 - square) * sine * length], dim=1)


def rounded_by_torch(keys: Tensor, lookup: Tensor, out: Tensor, scale: float, safe: float) -> Tensor:
    """See ``Rounded``: block ``i`` of the keystream makes pair ``i``."""
    doubtful = torch.empty(len(out), dtype=torch.bool, device=out.device)
    for start in range(0, len(out), CHUNK):
        stop = min(start + CHUNK, len(out))
        words = keystream_words(keys, lookup, torch.arange(start, stop, device=out.device))
        normals = transform(words, scale)
        torch.round(normals, out=out[start:stop])
        sure = ((normals - out[start:stop]).abs() < safe).all(1)  # NaN compares as False
        uniform = uniforms(words)
        doubtful[start:stop] = ~(sure & (uniform >= CUT) & (uniform <= 1.0 - CUT))
    return doubtful


def fastest(device: torch.device) -> Rounded:
    """Triton's kernel on a CUDA device where Triton is there, torch operations anywhere else."""
    if device.type != "cuda":
        return rounded_by_torch
    try:
        from dptrain.noise.device_kernel import rounded_by_triton
    except ImportError:
        return rounded_by_torch
    return rounded_by_triton


def check_device(rounded: Rounded, lookup: Tensor, scale: float) -> None:
    """Holds a device's noise of a made-up key against the processor's.

    Raises:
        ConfigError: a pair that neither has doubts about is another, or there are far more doubts than expected.
    """
    keys, safe = round_keys(bytes(range(32))), safe_distance(scale)
    found, expected = [], []
    for device, way, results in ((lookup.device, rounded, found), (torch.device("cpu"), rounded_by_torch, expected)):
        out = torch.empty((PAIRS, 2), dtype=torch.float64, device=device)
        doubts = way(on_device(keys, device), lookup.to(device), out, scale, safe)
        results += [out.cpu(), doubts.cpu()]
    sure = ~(found[1] | expected[1])
    alike = torch.equal(found[0][sure], expected[0][sure])
    if not alike or int(found[1].sum()) > 2 * int(expected[1].sum()) + 64:
        raise ConfigError(
            "execution.noise_device",
            "model",
            f"{lookup.device} computes other numbers than the proof of the noise allows",
            "set execution.noise_device=cpu",
        )
