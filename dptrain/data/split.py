"""Sets public rows aside by a seeded split that ignores content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def split_positions(rows: int, fraction: float, seed: int) -> np.ndarray:
    """Which of ``rows`` positions are public: one at random out of every stretch of 1 / fraction positions.

    Args:
        rows: number of rows N.
        fraction: share of public rows, in (0, 1).
        seed: public.

    Returns:
        (N,) bool. round(N * fraction) of them, give or take one, are true.

    Guarantee: whether position i is public depends on i, fraction and seed, on no content and not on N. Appending
    a row moves no other row. Deleting a row from the middle of a file does: where adjacency is add_remove, split
    by ids (``split_ids``) or give public rows of their own.
    """
    stretches = int(np.ceil(rows * fraction)) + 1
    start = np.floor(np.arange(stretches + 1) / fraction + 1e-9).astype(np.int64)  # whole positions, at least 1 each
    offset = np.random.RandomState(seed).random_sample(stretches)  # a prefix of one frozen stream, whatever N
    chosen = start[:-1] + np.floor(offset * np.diff(start)).astype(np.int64)
    public = np.zeros(rows, dtype=bool)
    public[chosen[chosen < rows]] = True
    return public


def split_share(ids: Sequence[str], fraction: float, seed: int) -> np.ndarray:
    """Which rows are public when all rows of one id go the same way and the number of public ids is exact.

    Args:
        ids: N ids, one a row.
        fraction: share of the U distinct ids that is public, in (0, 1).
        seed: public.

    Returns:
        (N,) bool: the rows of the round(U * fraction) ids whose keyed hash is smallest.

    Guarantee: for a number of units that is public (adjacency zero_out). Taking an id away may move one other across:
    where adjacency is add_remove, use ``split_ids``.
    """
    draws, place = _draws(ids, seed)
    public = np.zeros(len(draws), dtype=bool)
    public[np.argsort(draws, kind="stable")[: round(len(draws) * fraction)]] = True
    return public[place]


def split_ids(ids: Sequence[str], fraction: float, seed: int) -> np.ndarray:
    """Which rows are public when all rows of one id go the same way, each id by a hash of itself.

    Args:
        ids: N ids, one a row (people, file names).
        fraction: probability of an id to be public, in (0, 1).
        seed: public.

    Returns:
        (N,) bool. The number of public ids is random, about their number times ``fraction``.

    Guarantee: where an id goes depends on the id, fraction and seed alone, so an id is never on both sides and
    taking one away moves no other.
    """
    draws, place = _draws(ids, seed)
    return (draws < fraction)[place]


def _draws(ids: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A number in [0, 1) for each distinct id, by a keyed hash of itself; and which of them each row has."""
    key = seed.to_bytes(8, "little")
    distinct, place = np.unique(np.asarray(ids, dtype=object).astype(str), return_inverse=True)
    draws = [
        int.from_bytes(hashlib.blake2b(str(name).encode(), key=key, digest_size=8).digest(), "little") / 2.0**64
        for name in distinct
    ]
    return np.asarray(draws), place
