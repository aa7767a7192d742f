"""The shared clipping code: whatever gradients arrive, what leaves is bounded, and exact on the grid."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dptrain.gradients import clip
from dptrain.gradients.clip import add_clipped_rows, check_grid, clip_factor, largest_exact_draw
from dptrain.gradients.protocol import ClippingRule
from dptrain.privacy.grid import grid_step

SHAPES = [(3, 2), (5,), (1,), (2, 2, 2)]
SIZE = 20


def split(rows: Tensor) -> list[Tensor]:
    """(R, 20) rows as per-parameter gradients."""
    parts = torch.split(rows, [math.prod(s) for s in SHAPES], dim=1)
    return [p.reshape(len(rows), *s) for p, s in zip(parts, SHAPES, strict=True)]


def summed(rows: Tensor, unit: Tensor, weight: Tensor, rule: ClippingRule) -> tuple[Tensor, Tensor]:
    total = torch.zeros(SIZE, dtype=torch.float64)
    return total, add_clipped_rows(split(rows), unit, weight, rule, total)


def by_hand(rows: Tensor, unit: Tensor, weight: Tensor, rule: ClippingRule) -> Tensor:
    """The clipped sum written out, unit after unit."""
    total = torch.zeros(SIZE, dtype=torch.float64)
    for slot in unit[weight != 0].unique():
        gradient = rows[(unit == slot) & (weight != 0)].double().sum(0)
        if gradient.isfinite().all():
            gradient = gradient * min(1.0, rule.clipping_norm / max(float(gradient.norm()), 1e-300))
            total += gradient if rule.grid is None else (gradient / rule.grid).round()
    return total


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("unit", [[0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 1, 5], [4, 2, 2, 0, 0, 0]])
def test_sum_is_the_one_written_out(dtype: torch.dtype, unit: list[int]) -> None:
    torch.manual_seed(0)
    rows, weight = torch.randn(6, SIZE).to(dtype), torch.tensor([1, 1, 1, 1, 1, 0.0])
    for rule in (ClippingRule(2.0, None), ClippingRule(100.0, None)):
        total, norms = summed(rows, torch.tensor(unit), weight, rule)
        expected = by_hand(rows, torch.tensor(unit), weight, rule)
        assert torch.allclose(total, expected, rtol=1e-12, atol=1e-12)
        for slot in range(6):
            mine = (torch.tensor(unit) == slot) & (weight != 0)
            assert float(norms[slot]) == pytest.approx(float(rows[mine].double().sum(0).norm()), rel=1e-12)


magnitudes = st.sampled_from(
    [0.0, 1e-45, 1e-30, 1e-4, 0.999999, 1.0, 1.000001, 3.0, 1e10, 1e30, 3e38, math.inf, math.nan]
)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(magnitudes, min_size=6, max_size=6),
    unit=st.lists(st.integers(0, 5), min_size=6, max_size=6),
    dead=st.lists(st.booleans(), min_size=6, max_size=6),
    norm=st.sampled_from([1e-6, 0.1, 1.0, 1e4]),
    seed=st.integers(0, 10**6),
)
def test_no_unit_adds_more_than_its_bound(
    sizes: list[float], unit: list[int], dead: list[bool], norm: float, seed: int
) -> None:
    """Each slot alone stays within C and half a grid step a coordinate, all together are the sum of the slots, exactly;
    a slot that is not finite, and a row without weight, add nothing."""
    rows = torch.randn(6, SIZE, generator=torch.Generator().manual_seed(seed))
    rows = rows / rows.norm(dim=1, keepdim=True) * torch.tensor(sizes)[:, None]
    slots, weight = torch.tensor(unit), 1.0 - torch.tensor(dead).float()
    rule = ClippingRule(norm, grid_step(norm, 1e-3, SIZE))
    assert rule.grid is not None
    total, norms = summed(rows, slots, weight, rule)
    apart = torch.zeros(SIZE, dtype=torch.float64)
    for slot in range(6):
        mine, _ = summed(rows, slots, weight * (slots == slot), rule)
        assert torch.equal(mine, mine.round())
        assert float(mine.norm()) * rule.grid <= norm + math.sqrt(SIZE) * rule.grid / 2
        held = rows[(slots == slot) & (weight != 0)].double()
        if len(held) == 0:
            assert float(norms[slot]) == 0.0
        if not held.isfinite().all() or len(held) == 0:
            assert not mine.any()
        apart += mine
        unrounded, _ = summed(rows, slots, weight * (slots == slot), ClippingRule(norm, None))
        assert float(unrounded.norm()) <= norm
    assert torch.equal(total, apart)


def test_rows_without_weight_poison_nothing_even_in_a_shared_slot() -> None:
    rows = torch.ones(3, SIZE)
    rows[2] = math.nan
    rule = ClippingRule(100.0, None)
    assert torch.equal(summed(rows, torch.tensor([0, 1, 1]), torch.tensor([1.0, 1, 0]), rule)[0], 2 * rows[0].double())
    assert torch.equal(summed(rows, torch.tensor([0, 0, 1]), torch.tensor([1.0, 1, 0]), rule)[0], 2 * rows[0].double())


def test_cancelling_giants_are_bounded_by_what_is_added() -> None:
    """Rows of one unit that cancel to rounding residue: the norm is that of the residue which is added."""
    rows = torch.zeros(3, SIZE)
    rows[0, 0], rows[1, 0], rows[2, 0] = 1e30, 7.0, -1e30
    total, norms = summed(rows, torch.tensor([0, 0, 0]), torch.ones(3), ClippingRule(1.0, None))
    assert float(total.norm()) <= 1.0 and float(norms[0]) in (0.0, 7.0)


@pytest.mark.parametrize("size", [1, 1000, 3_000_000])
def test_factor_never_lets_a_norm_exceed_c(size: int) -> None:
    """Worst case for a sum of squares: many equal values. The exact norm after clipping is at most C."""
    value = 1.0 / math.sqrt(size)
    rows = torch.full((1, size), value, dtype=torch.float64) * (1 + 1e-12)
    total = torch.zeros(size, dtype=torch.float64)
    add_clipped_rows([rows], torch.zeros(1, dtype=torch.int64), torch.ones(1), ClippingRule(1.0, None), total)
    assert math.fsum((total[:1000].square()).tolist()) * (size / min(size, 1000)) <= 1.0
    assert float(clip_factor(torch.tensor(0.0, dtype=torch.float64), ClippingRule(1.0, None), size)) == 1.0


def test_small_chunks_give_the_same_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, unit, rule = torch.randn(6, SIZE), torch.tensor([0, 1, 1, 2, 3, 5]), ClippingRule(1.0, 2.0**-20)
    whole, _ = summed(rows, unit, torch.ones(6), rule)
    monkeypatch.setattr(clip, "_CHUNK", 12)
    assert torch.equal(whole, summed(rows, unit, torch.ones(6), rule)[0])


def test_gradients_are_read_not_written() -> None:
    rows = torch.randn(6, SIZE, dtype=torch.float64)
    copy = rows.clone()
    summed(rows, torch.arange(6), torch.ones(6), ClippingRule(0.1, 2.0**-20))
    assert torch.equal(rows, copy)


def test_order_of_units_does_not_move_a_grid_sum() -> None:
    rows, rule = torch.randn(64, SIZE), ClippingRule(1.0, grid_step(1.0, 1e-6, SIZE))
    unit, order = torch.arange(64), torch.randperm(64)
    one, _ = summed(rows, unit, torch.ones(64), rule)
    assert torch.equal(one, summed(rows[order], unit, torch.ones(64), rule)[0])


@pytest.mark.parametrize(
    "rule",
    [ClippingRule(math.nan, None), ClippingRule(0.0, None), ClippingRule(1.0, 0.0), ClippingRule(1.0, 2.0**-40)],
)
def test_rules_that_break_the_promise_are_refused(rule: ClippingRule) -> None:
    with pytest.raises(ValueError, match=r"clipping_norm|grid"):
        check_grid(rule)


def test_largest_exact_draw_leaves_room_for_the_sum() -> None:
    rule = ClippingRule(1.0, grid_step(1.0, 1e-3, 10**8))
    assert rule.grid is not None
    assert largest_exact_draw(rule) > 10**7
    assert largest_exact_draw(rule) * (1.0 / rule.grid + 1.0) <= 2.0**53
    with pytest.raises(ValueError, match="without a grid"):
        largest_exact_draw(ClippingRule(1.0, None))
