"""A salted digest of the training rows: says later whether they are still the same, and nothing to anyone else."""

from __future__ import annotations

import hashlib
import json
import secrets

import torch
from torch import Tensor

from dptrain.data.source import Rows

SALT_BYTES = 32


def new_salt() -> bytes:
    """A fresh random salt (32 bytes) from the operating system. It belongs to the internal tier, beside its digest."""
    return secrets.token_bytes(SALT_BYTES)


def manifest_digest(rows: Rows, salt: bytes) -> str:
    """Keyed BLAKE2b (RFC 7693) over shapes, types, and every row's input, target and unit id, in their order.

    Appending, dropping, reordering or editing one row changes it.

    Args:
        rows: the rows as they will be trained on, on any device.
        salt: 16 to 64 secret bytes (``new_salt``).

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: the salt is too short or too long.

    Guarantee: without the salt the digest says nothing. That is why it is keyed: a plain digest would let anyone
    who can write down a candidate data set (with and without a certain person's row) test the guess. Digest and
    salt together allow just that, so both stay in the internal tier.
    """
    if not 16 <= len(salt) <= 64:
        raise ValueError(f"a salt has 16 to 64 bytes, not {len(salt)}")
    digest = hashlib.blake2b(key=salt, digest_size=32, person=b"dptrain.rows/1")
    parts = {"inputs": rows.inputs, "targets": rows.targets, "unit_id": rows.unit_id}
    # Shapes and types first: they fix how the bytes that follow divide into fields, so no two row sets collide.
    header = {name: [str(part.dtype), list(part.shape)] for name, part in parts.items()}
    digest.update(json.dumps(header, sort_keys=True).encode() + b"\n")
    for part in parts.values():
        digest.update(_bytes(part))
    return digest.hexdigest()


def _bytes(part: Tensor) -> memoryview:
    flat = part.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
