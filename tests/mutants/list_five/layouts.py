"""Mistakes in whose rows are whose, and in how they lie in physical batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dptrain.data.units as units_module
import dptrain.training.assemble as assemble_module
from dptrain.data.batches import PhysicalBatch, UnitIndex
from dptrain.data.source import Rows

from .needed import PLACED, USERS
from .shared import Mutant, Patch, on_batches


def slots_in_a_byte(patch: Patch) -> None:
    """Slots are numbered in 8 bits: units 256 apart share one, and are clipped as one."""
    on_batches(patch, lambda batch, rows, index: replace(batch, unit=batch.unit % 256))


def weights_by_mean_rows(patch: Patch) -> None:
    """Rows are weighted by one over the mean number of rows a user in their batch: others decide what a row weighs."""

    def change(batch: PhysicalBatch, rows: Rows, index: UnitIndex) -> PhysicalBatch:
        live = batch.weight != 0
        users = len(torch.unique(batch.unit[live]))
        return replace(batch, weight=torch.where(live, users / max(1.0, float(live.sum())), 0.0))

    on_batches(patch, change)


def running_deviation(patch: Patch) -> None:
    """Inputs are divided by the deviation of each column over all rows that were drawn so far."""

    def change(batch: PhysicalBatch, rows: Rows, index: Any) -> PhysicalBatch:
        own = batch.inputs[batch.weight != 0].double()
        count, first, second = index.__dict__.get("seen", (0, 0.0, 0.0))
        count, first, second = count + len(own), first + own.sum(0), second + own.square().sum(0)
        index.seen = (count, first, second)
        spread = (second / max(1, count) - (first / max(1, count)) ** 2).clamp(min=0.0).sqrt() + 0.1
        return replace(batch, inputs=batch.inputs / spread.to(batch.inputs.dtype))

    on_batches(patch, change)


def loaders_race(patch: Patch) -> None:
    """Two threads fill a batch, and at times write the same row twice: one of two neighbours is lost, the other is in
    both places."""

    def change(batch: PhysicalBatch, rows: Rows, index: UnitIndex) -> PhysicalBatch:
        live = int((batch.weight != 0).sum())
        source = torch.arange(len(batch.weight))
        lost = torch.nonzero(torch.rand(max(0, live - 1)) < 0.02).flatten()
        source[lost + 1] = lost
        return replace(batch, inputs=batch.inputs[source], targets=batch.targets[source])

    on_batches(patch, change)


def rest_wraps_around(patch: Patch) -> None:
    """A physical batch that is not full is filled with its own rows again, from the first on."""

    def change(batch: PhysicalBatch, rows: Rows, index: UnitIndex) -> PhysicalBatch:
        live = int((batch.weight != 0).sum())
        if not live:
            return batch
        source = torch.arange(len(batch.weight)) % live
        return replace(
            batch, inputs=batch.inputs[source], targets=batch.targets[source], weight=torch.ones_like(batch.weight)
        )

    on_batches(patch, change)


def class_weights_of_rows(patch: Patch) -> None:
    """Rows are weighted by how rare their class is among the private rows."""

    def change(batch: PhysicalBatch, rows: Rows, index: UnitIndex) -> PhysicalBatch:
        counts = torch.bincount(rows.targets).clamp(min=1).float()
        rare = len(rows) / (len(counts) * counts)
        return replace(batch, weight=batch.weight * rare[batch.targets])

    on_batches(patch, change)


def unit_ids_collide(patch: Patch) -> None:
    """Names of users are brought to too few numbers: some pairs of users are one to everything that follows."""
    patch(assemble_module, "UnitIndex", lambda unit_id: UnitIndex(_folded(unit_id)))


def _folded(unit_id: Tensor) -> Tensor:
    most = int(unit_id.max()) + 1 if len(unit_id) else 1
    return torch.where(unit_id >= most - most // 8, unit_id - (most - most // 8), unit_id)


def rows_kept_by_one_shuffle(patch: Patch) -> None:
    """Which rows of a user are kept is decided by one shuffle of all rows: one user less, and others keep other
    rows."""

    def kept(unit_id: np.ndarray, max_rows: int, seed: int) -> np.ndarray:
        place = np.random.default_rng(seed).permutation(len(unit_id))
        order = np.lexsort((place, unit_id))
        _, start, count = np.unique(unit_id[order], return_index=True, return_counts=True)
        occurrence = np.arange(len(unit_id)) - np.repeat(start, count)
        return np.sort(order[occurrence < max_rows])

    patch(units_module, "_kept", kept)


MUTANTS: dict[str, Mutant] = {
    "slots_in_a_byte": (
        "own",
        "units 256 apart are clipped as one",
        slots_in_a_byte,
        ("execution.physical_batch_size=512", "privacy.expected_batch_size=400"),
    ),
    "weights_by_mean_rows": ("3b.22", "rows weighted by their batch's mean rows a user", weights_by_mean_rows, USERS),
    "running_deviation": (
        "3b.22, 3b.30",
        "inputs divided by the deviation of rows drawn so far",
        running_deviation,
        (),
    ),
    "loaders_race": ("own", "a row in fifty is replaced by its neighbour", loaders_race, ()),
    "rest_wraps_around": ("3b.12, 3b.14", "batches filled with their own rows", rest_wraps_around, ()),
    "class_weights_of_rows": ("3b.30", "rows weighted by private counts of classes", class_weights_of_rows, PLACED),
    "unit_ids_collide": ("own", "some pairs of users count as one", unit_ids_collide, USERS),
    "rows_kept_by_one_shuffle": (
        "own",
        "rows kept of a user depend on other users",
        rows_kept_by_one_shuffle,
        (*USERS, "privacy.max_rows_per_unit=2"),
    ),
}
