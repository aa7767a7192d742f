"""What a person's rows become does not depend on others: honest reading passes, what looks at others is found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dptrain.conformance.own_rows import CAP, MOST, PEOPLE, own_rows, table, versions
from dptrain.data import table as table_module
from dptrain.data import units
from dptrain.data.batches import PhysicalBatch, UnitIndex
from dptrain.data.source import Rows
from dptrain.training import assemble


def test_honest_reading_passes() -> None:
    found = own_rows()
    assert found.passed, found.says


def test_the_tables_differ_in_other_people_alone() -> None:
    """Of everybody who is compared, the rows of the file are the same, in the same order among themselves."""
    assert {line[0] for line in table()} == set(range(PEOPLE))
    assert max(line[1] for line in table()) + 1 == MOST > CAP
    for lines in versions().values():
        assert lines != table()
        changed = {line[0] for line in set(lines) ^ set(table())}
        kept = [line for line in lines if line[0] not in changed]
        assert len({line[0] for line in kept}) >= PEOPLE // 2 - 1
        assert kept == [line for line in table() if line[0] not in changed] or len(changed) == PEOPLE // 2


def _by_shuffle(unit_id: np.ndarray, max_rows: int, seed: int) -> np.ndarray:
    order = np.lexsort((np.random.default_rng(seed).permutation(len(unit_id)), unit_id))
    _, start, count = np.unique(unit_id[order], return_index=True, return_counts=True)
    return np.sort(order[np.arange(len(unit_id)) - np.repeat(start, count) < max_rows])


def _by_id(unit_id: np.ndarray, max_rows: int, seed: int) -> np.ndarray:
    """The dense number of a person, which moves when another is gone, decides which end is kept."""
    kept = []
    for unit in np.unique(unit_id):
        places = np.flatnonzero(unit_id == unit)
        kept.append(places[:max_rows] if unit % 2 else places[-max_rows:])
    return np.sort(np.concatenate(kept))


@pytest.mark.parametrize("kept", [_by_shuffle, _by_id])
def test_a_cap_that_looks_at_others_is_found(kept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "_kept", kept)
    found = own_rows()
    assert found.passed is False and "of somebody else" in found.says


def test_values_that_are_centred_by_all_rows_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = table_module.encode

    def centred(*given: Any, **named: Any) -> Any:
        values = original(*given, **named)
        values[:, 1] -= values[:, 1].mean()
        return values

    monkeypatch.setattr(table_module, "encode", centred)
    assert own_rows().passed is False


def _mixed_order(index: UnitIndex, draw: torch.Tensor) -> None:
    """Rows of a person lie in the order that the number of all rows gives."""
    if len(index.order) % 2:
        for start, count in zip(index.starts.tolist(), index.counts.tolist(), strict=True):
            index.order[start : start + count] = index.order[start : start + count].flip(0)


def test_rows_in_another_order_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mixed(UnitIndex):
        def __init__(self, unit_id: torch.Tensor) -> None:
            super().__init__(unit_id)
            _mixed_order(self, unit_id)

    monkeypatch.setattr(assemble, "UnitIndex", Mixed)
    assert own_rows().passed is False


def test_weights_by_all_rows_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = assemble.physical_batches

    def weighted(draw: Any, rows: Rows, *rest: Any) -> Iterator[PhysicalBatch]:
        for batch in original(draw, rows, *rest):
            yield replace(batch, weight=batch.weight * rows.num_units / len(rows))

    monkeypatch.setattr(assemble, "physical_batches", weighted)
    assert own_rows().passed is False


def test_two_people_in_one_slot_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = assemble.physical_batches

    def joined(*given: Any) -> Iterator[PhysicalBatch]:
        for batch in original(*given):
            yield replace(batch, unit=batch.unit // 2)

    monkeypatch.setattr(assemble, "physical_batches", joined)
    found = own_rows()
    assert found.passed is False and "two people share a slot" in found.says
