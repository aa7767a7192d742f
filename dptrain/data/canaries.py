"""Canaries: units of which each is in the training data, or not, by the toss of a fair coin of its own.

Crafted canaries are rows of a run's own making, added to the records; natural ones are records, some of them left out.
What they are follows from a key and public facts (shape, number of classes, number of units), never from a record.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dptrain.data.source import Rows, SourceInfo
from dptrain.errors import ConfigError
from dptrain.keystream import Keystream, Purpose

CRAFTS = ("noise", "signs", "blocks")
"""Ways to make up a row, see ``crafted_rows``."""
CRAFT = "signs"
"""The one in use: it leaves the largest signal on the shipped models (docs/results/claim_check.md)."""
SIDE = 7
"""Patches along each side of a picture, for the craft ``blocks``."""


@dataclass(frozen=True)
class Canaries:
    """The canaries of one run. Internal tier: whoever knows coins and scores knows what the noise was to hide."""

    kind: str
    """crafted or natural."""
    key: bytes
    """32 bytes from which the rows are rebuilt, or which units were chosen. Not the key of draws or noise."""
    included: NDArray[np.bool_]
    """(m,) the coins: whether each canary was in the training data."""
    craft: str = CRAFT

    def __post_init__(self) -> None:
        if self.kind not in ("crafted", "natural") or self.craft not in CRAFTS or len(self.key) != 32:
            raise ValueError("no canaries of this kind")

    def __len__(self) -> int:
        return len(self.included)

    def __repr__(self) -> str:
        return f"Canaries(kind={self.kind!r}, count={len(self)})"


def toss_canaries(kind: str, count: int) -> Canaries:
    """New canaries: a key and coins, all from the operating system; no seed moves them.

    Guarantee: the coins are fair and independent of each other, of the rows, of draws and of noise (up to AES-256 being
    a pseudo-random permutation); the key of the stream they come from is used for nothing else, and forgotten.
    """
    bits = Keystream().open(Purpose.DRAW, 0).fill(np.empty(-(-count // 8), dtype=np.uint8))
    return Canaries(kind, secrets.token_bytes(32), np.unpackbits(bits)[:count].astype(np.bool_))


def crafted_texts(canaries: Canaries, length: int, num_classes: int, vocabulary: int, pad: int | None) -> Rows:
    """All crafted canaries for rows of token ids: every id uniform over the vocabulary (up to 2^-53), none of them
    padding, so that a row is full; nothing that was ever written looks like it.

    Args:
        canaries: of kind crafted.
        length: T, tokens of a row, at least 2.
        num_classes: 1 for language, whose target is how many tokens there are to tell; else labels are uniform.
        vocabulary: ids lie in 0..vocabulary-1; at least 2.
        pad: the id that fills rows behind their end; None where there is none.

    Returns:
        m rows (T,) of int64, unit i being canary i.
    """
    words = np.frombuffer(_bytes(canaries.key, "ids", 8 * len(canaries) * length), dtype="<u8")
    ids = (words % np.uint64(vocabulary - (pad is not None))).astype(np.int64).reshape(-1, length)
    if pad is not None:
        ids += ids >= pad
    if num_classes == 1:
        return Rows(torch.from_numpy(ids), torch.full((len(canaries),), length - 1, dtype=torch.int64))
    return Rows(torch.from_numpy(ids), torch.from_numpy(_labels(canaries, num_classes)))


def _labels(canaries: Canaries, num_classes: int) -> NDArray[np.int64]:
    drawn = np.frombuffer(_bytes(canaries.key, "labels", 8 * len(canaries)), dtype="<u8") % num_classes
    return drawn.astype(np.int64)


def crafted_rows(canaries: Canaries, input_shape: tuple[int, ...], num_classes: int) -> Rows:
    """All crafted canaries, included or not, one row each, with labels drawn at random.

    noise: every value uniform in [-1, 1]. signs: every value -1 or 1. blocks: a picture of 7 by 7 patches (other
    shapes: as ``signs``), each -1 or 1 in all channels. Labels are uniform over the classes: what looks like nothing at
    all has no right label, so that a model that finds one has seen it.

    Args:
        canaries: of kind crafted.
        input_shape: of a row, without the batch dimension.
        num_classes: at least 2.

    Returns:
        m rows of float32, unit i being canary i.
    """
    shape = (len(canaries), *input_shape)
    if canaries.craft == "noise":
        values = _uniform(canaries.key, shape)
    elif canaries.craft == "blocks" and len(input_shape) == 3:
        patches = _signs(canaries.key, (len(canaries), 1, SIDE, SIDE))
        height, width = (np.arange(extent) * SIDE // extent for extent in input_shape[1:])
        values = np.broadcast_to(patches[:, :, height][:, :, :, width], shape).copy()
    else:
        values = _signs(canaries.key, shape)
    return Rows(torch.from_numpy(values), torch.from_numpy(_labels(canaries, num_classes)))


def crafted_of(canaries: Canaries, info: SourceInfo) -> Rows:
    """``crafted_texts`` for rows of token ids whose vocabulary is public, else ``crafted_rows``."""
    if info.vocabulary is not None and len(info.input_shape) == 1:
        return crafted_texts(canaries, info.input_shape[0], info.num_classes, info.vocabulary, info.pad)
    return crafted_rows(canaries, tuple(info.input_shape), info.num_classes)


def natural_units(canaries: Canaries, num_units: int) -> torch.Tensor:
    """(m,) int64, which units are canaries: drawn without repetition by the key, canary i being the i-th.

    Raises:
        ConfigError: there are fewer units than canaries.
    """
    if len(canaries) > num_units:
        remedy = "lower it"
        raise ConfigError("audit.canaries", len(canaries), f"is more than the {num_units} units that train", remedy)
    keys = np.frombuffer(_bytes(canaries.key, "units", 8 * num_units), dtype="<u8")
    return torch.from_numpy(np.argsort(keys, kind="stable")[: len(canaries)].astype(np.int64))


def without_left_out(rows: Rows, canaries: Canaries) -> Rows:
    """The rows without the natural canaries that are left out. Units keep their numbers: a slot without rows adds
    nothing when it is drawn, which is what taking a unit out means under zero_out."""
    units = natural_units(canaries, rows.num_units)
    left_out = torch.zeros(rows.num_units, dtype=torch.bool)
    left_out[units[torch.from_numpy(~canaries.included)]] = True
    kept = torch.nonzero(~left_out[rows.unit_id]).flatten()
    return Rows(rows.inputs[kept], rows.targets[kept], rows.unit_id[kept])


def with_included(rows: Rows, crafted: Rows, canaries: Canaries) -> Rows:
    """The rows with the crafted canaries that are included, behind all others: the i-th included one is unit N + i.

    Args:
        rows: that train, as the model takes them.
        crafted: all m canaries, mapped and typed as the rows are.
        canaries: of kind crafted.
    """
    inside = torch.from_numpy(np.flatnonzero(canaries.included))
    return Rows(
        torch.cat([rows.inputs, crafted.inputs[inside]]),
        torch.cat([rows.targets, crafted.targets[inside]]),
        torch.cat([rows.unit_id, rows.num_units + torch.arange(len(inside))]),
    )


def _bytes(key: bytes, purpose: str, count: int) -> bytes:
    """SHAKE-256 (FIPS 202) of purpose and key: the same bytes on every machine and version, for good."""
    return hashlib.shake_256(b"dptrain.canaries/1 " + purpose.encode() + b"\0" + key).digest(count)


def _signs(key: bytes, shape: tuple[int, ...]) -> NDArray[np.float32]:
    count = math.prod(shape)
    bits = np.unpackbits(np.frombuffer(_bytes(key, "rows", -(-count // 8)), dtype=np.uint8))[:count]
    return (2.0 * bits - 1.0).astype(np.float32).reshape(shape)


def _uniform(key: bytes, shape: tuple[int, ...]) -> NDArray[np.float32]:
    words = np.frombuffer(_bytes(key, "rows", 2 * math.prod(shape)), dtype="<u2")
    return (words.astype(np.float32) / 32767.5 - 1.0).reshape(shape)
