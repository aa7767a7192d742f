"""A draw comes out of its physical batches whole: every row of every unit once, no unit cut, padding weightless."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dptrain.data.batches import PhysicalBatch, UnitIndex, physical_batches
from dptrain.data.source import Rows
from dptrain.errors import ConfigError


def numbered(unit_id: Tensor) -> Rows:
    """Rows whose content is their own number (from 1, so that padding zeros are told apart)."""
    number = torch.arange(1, len(unit_id) + 1)
    return Rows(number.float()[:, None].repeat(1, 3), number, unit_id)


def laid_out(unit_id: list[int], draw: list[int], size: int) -> list[PhysicalBatch]:
    rows = numbered(torch.tensor(unit_id, dtype=torch.int64))
    return list(physical_batches(torch.tensor(draw, dtype=torch.int64), rows, UnitIndex(rows.unit_id), size))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_row_of_the_draw_appears_once_and_no_unit_is_cut(data: st.DataObject) -> None:
    unit_id = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=40))
    units = data.draw(st.permutations(range(max(unit_id) + 1)))
    draw = units[: data.draw(st.integers(0, len(units)))]
    largest = max(unit_id.count(u) for u in unit_id)
    size = data.draw(st.integers(largest, largest + 10))
    seen: list[int] = []
    homes: dict[int, set[int]] = {}
    for number, batch in enumerate(laid_out(unit_id, draw, size)):
        assert batch.inputs.shape == (size, 3) and batch.num_slots == size
        live = batch.weight > 0
        assert live.any()
        assert not batch.inputs[~live].any() and not batch.targets[~live].any()
        slots_of_padding = set(batch.unit[~live].tolist())
        assert slots_of_padding.isdisjoint(batch.unit[live].tolist()) and len(slots_of_padding) == int((~live).sum())
        owner: dict[int, int] = {}
        for target, slot, weight in zip(batch.targets[live], batch.unit[live], batch.weight[live], strict=True):
            unit = unit_id[int(target) - 1]
            assert owner.setdefault(int(slot), unit) == unit
            assert float(weight) == pytest.approx(1 / unit_id.count(unit), rel=1e-6)
            homes.setdefault(unit, set()).add(number)
            seen.append(int(target) - 1)
        assert len(set(owner.values())) == len(owner)
    assert sorted(seen) == [row for row, unit in enumerate(unit_id) if unit in draw]
    assert all(len(batches) == 1 for batches in homes.values())


def test_packing_ignores_content() -> None:
    unit_id = torch.tensor([0, 1, 1, 2, 2, 2, 3])
    draw, index = torch.tensor([0, 1, 2, 3]), UnitIndex(unit_id)
    plain = Rows(torch.zeros(7, 2), torch.zeros(7), unit_id)
    wild = Rows(torch.full((7, 2), float("nan")), torch.full((7,), 1e30), unit_id)
    for one, other in zip(physical_batches(draw, plain, index, 4), physical_batches(draw, wild, index, 4), strict=True):
        assert torch.equal(one.unit, other.unit) and torch.equal(one.weight, other.weight)


def test_records_fill_batches_and_weights_are_one() -> None:
    batches = laid_out(list(range(100)), list(range(0, 100, 3)), 10)
    assert [int((b.weight == 1).sum()) for b in batches] == [10, 10, 10, 4]
    assert [float(b.weight.sum()) for b in batches] == [10, 10, 10, 4]


def test_an_empty_draw_yields_nothing() -> None:
    assert laid_out([0, 1, 2], [], 4) == []
    assert laid_out([0, 2], [1], 4) == []  # a unit without rows


def test_a_unit_larger_than_a_batch_is_refused_before_anything_is_laid_out() -> None:
    rows = numbered(torch.tensor([0, 1, 1, 1]))
    with pytest.raises(ConfigError, match=r"execution.physical_batch_size=2: a unit with 3 rows"):
        physical_batches(torch.tensor([0]), rows, UnitIndex(rows.unit_id), 2)


def test_image_and_integer_rows_keep_their_shape_and_type() -> None:
    rows = Rows(torch.ones(3, 2, 4, 4, dtype=torch.int64), torch.ones(3))
    batch = next(physical_batches(torch.tensor([2]), rows, UnitIndex(rows.unit_id), 2))
    assert batch.inputs.shape == (2, 2, 4, 4) and batch.inputs.dtype == torch.int64
    assert batch.targets.dtype == torch.float32
