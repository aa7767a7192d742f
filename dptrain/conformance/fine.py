"""Conformance in small things: units just above C, the price of the slack, key stream addresses, lattice and tails."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import numpy as np
import torch

from dptrain.conformance.reference import added, gradients, only
from dptrain.conformance.stand import Result, Stand
from dptrain.keystream import Keystream, Purpose

EXCESS = (1.003, 1.01, 1.03, 1.1)
"""Norms of a unit over C, where a tolerance of the clipping would show."""
ADDRESSED = [*range(521), *(2**k + offset for k in range(10, 48) for offset in (-1, 0))]
"""Steps whose words are compared: a counter that is cut to any number of bits, or off by one, comes to one again."""
FEW = 70
"""Of them, for the ranks that share a key: their streams differ at every step or at none."""
ALPHA = 1e-7
"""False-alarm rate of each law."""


def just_above(stand: Stand) -> Result:
    """A unit whose norm lies just above C, which is chosen for it from its recomputed norm, adds at most C (1 + s)."""
    batch, largest = stand.all_rows(), 0.0
    for unit, gradient in enumerate(gradients(stand, batch, torch.arange(8))):
        norm = float(gradient.norm())
        if not 1e-6 < norm < 1e6:
            continue
        excess = EXCESS[unit % len(EXCESS)]
        total = added(stand.engine(norm / excess), only(batch, [unit]), stand.count)[0]
        largest = max(largest, float(total.norm()) * excess / norm)
    limit = 1.0 + stand.slack
    says = f"units up to a tenth above C add at most {largest:.6f} C (limit {limit:g})"
    return Result("just above C", largest <= limit, says)


def slack_paid(stand: Stand) -> Result:
    """The deviation is sigma C (1 + s), computed here."""
    wanted = stand.mechanism.noise_multiplier * stand.clip * (1.0 + stand.slack)
    ratio = stand.mechanism.noise_std / wanted
    return Result("slack paid", abs(ratio - 1.0) <= 1e-9, f"deviation is {ratio:.6f} of sigma C (1 + s)")


def addresses() -> Result:
    """Two keys, and two ranks of one key: every purpose, and steps of all sizes. No 64-bit word may come twice.

    False alarms below 1e-9: 1.3 10^5 words, of which two are equal by chance with probability 5e-10.
    """
    shared = os.urandom(32)
    streams = [Keystream(), Keystream(), Keystream(0, shared), Keystream(1, shared)]
    words = []
    for keys, steps in zip(streams, (ADDRESSED, ADDRESSED, ADDRESSED[:FEW], ADDRESSED[:FEW]), strict=True):
        words += [keys.open(purpose, step).uint64(8) for purpose in Purpose for step in steps]
    found = np.concatenate(words)
    twice = len(found) - len(np.unique(found))
    says = f"{twice} of {len(found)} words of {len(streams)} streams, all purposes and steps 0 to 2^47, come twice"
    return Result("key stream", twice == 0 and _refuses_again(streams[0]), says)


def _refuses_again(keys: Keystream) -> bool:
    """Whether an address that was opened before is refused."""
    try:
        keys.open(Purpose.NOISE, 0)
    except RuntimeError:
        return True
    return False


def fine_law(stand: Stand, samples: int) -> Iterator[Result]:
    """Noise, straight from a run's source: uniform modulo 16 grid steps, and as many values far out as a normal has."""
    from scipy.stats import binom, chi2, norm

    trainer = stand.trainer(8, 1)
    assert trainer.noise is not None
    pieces = [piece.double().cpu().clone() for piece in trainer.noise.pieces(0, samples)]  # a source may reuse memory
    values = torch.cat(pieces).numpy()[:samples]
    std = stand.mechanism.noise_multiplier * stand.clip * (1.0 + stand.slack) / (trainer.grid or 1.0)
    if trainer.grid is None or std < 64:
        yield Result("noise, lattice", None, "no grid, or one too coarse to be uniform modulo 16")
    else:
        counts = np.bincount(np.mod(values, 16).astype(np.int64), minlength=16)
        p = float(chi2.sf(((counts - samples / 16) ** 2).sum() * 16 / samples, 15))
        yield Result("noise, lattice", p >= ALPHA, f"p {p:.2g} modulo 16 grid steps, {samples} samples")
    least, says = 1.0, []
    for far in (3.5, 4.0):
        seen, rate = int((np.abs(values) > far * std).sum()), float(2 * norm.sf(far))
        p = 2 * min(float(binom.cdf(seen, samples, rate)), float(binom.sf(seen - 1, samples, rate)))
        least = min(least, p)
        says.append(f"{seen} beyond {far} deviations ({samples * rate:.0f} expected)")
    good = least >= ALPHA and math.isfinite(float(np.abs(values).max()))
    yield Result("noise, tails", good, f"{', '.join(says)}, {samples} samples")
