"""Mistakes between ranks."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from dptrain.training.loop import Trainer

from .shared import Mutant, Patch


def noise_on_every_rank(patch: Patch) -> None:
    patch(Trainer, "_is_first", property(lambda self: True))


def sum_not_reduced(patch: Patch) -> None:
    patch(dist, "all_reduce", lambda *_, **__: None)


def sum_averaged_over_ranks(patch: Patch) -> None:
    original = dist.all_reduce

    def reduce(flat: Tensor, *given: Any, **named: Any) -> None:
        original(flat, *given, **named)
        flat /= dist.get_world_size()

    patch(dist, "all_reduce", reduce)


def sum_reduced_twice(patch: Patch) -> None:
    original = dist.all_reduce

    def reduce(flat: Tensor, *given: Any, **named: Any) -> None:
        original(flat, *given, **named)
        original(flat, *given, **named)

    patch(dist, "all_reduce", reduce)


def ranks_drift_apart(patch: Patch) -> None:
    patch(dist, "broadcast", lambda *_, **__: None)


MUTANTS: dict[str, Mutant] = {
    "noise_on_every_rank": ("3b.16", "every rank adds noise", noise_on_every_rank, ()),
    "ranks_not_reduced": ("3b.16", "ranks' sums are not added", sum_not_reduced, ()),
    "ranks_averaged": ("3b.16", "ranks' sums are averaged", sum_averaged_over_ranks, ()),
    "ranks_reduced_twice": ("3b.16", "ranks' sums are added twice", sum_reduced_twice, ()),
    "ranks_drift": ("3a ranks desynchronise", "the release is not the same on all ranks", ranks_drift_apart, ()),
}
