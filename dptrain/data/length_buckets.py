"""To which length rows of tokens are padded: one of a few public lengths, instead of the longest that is allowed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dptrain.data.batches import UnitIndex

LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
"""Buckets where none are named: few, so that shapes stay few, and at most a half apart."""


def buckets_for(longest: int, wanted: Sequence[int] | None) -> list[int]:
    """The lengths that batches may have, rising; the last is ``longest``.

    Guarantee: made of public settings alone.

    Args:
        longest: T, the public bound (data.text.max_length).
        wanted: execution.length_buckets; None for ``LENGTHS``, empty for T alone. What is above T is left out.
    """
    lengths = LENGTHS if wanted is None else wanted
    return [*sorted({length for length in lengths if length < longest}), longest]


def unit_lengths(ids: Tensor, index: UnitIndex, pad: int, buckets: Sequence[int]) -> Tensor:
    """For each unit, the smallest bucket that holds its longest row: (num_units,) int64. Private: internal tier.

    Behind that length all of a unit's rows are padding, which a model that makes its mask of the row never sees.

    Args:
        ids: (N, T) token ids, padded behind their end with ``pad``.
        index: of their units.
        pad: id of the padding token.
        buckets: as ``buckets_for``.
    """
    places = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    own = ((ids != pad) * places).amax(1).cpu()  # (N,) tokens up to the last that is no padding
    longest = torch.zeros(index.num_units, dtype=torch.int64)
    owner = torch.repeat_interleave(torch.arange(index.num_units), index.counts)
    longest.scatter_reduce_(0, owner, own[index.order], "amax")
    steps = torch.tensor(list(buckets), dtype=torch.int64)
    return steps[torch.searchsorted(steps, longest)]
