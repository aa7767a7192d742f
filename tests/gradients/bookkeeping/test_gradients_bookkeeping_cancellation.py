"""Units made to hurt float32: terms that cancel, extreme sizes, and neighbours that change how a unit is computed.

What one unit adds must not depend on who else is in the batch, whatever it holds: a sum over many such units would move
with one of them by more than C.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bookkeeping_reference import Applied, by_way, engine_of, run
from torch import Tensor, nn
from torch.nn import functional as F

from dptrain.data.batches import PhysicalBatch

LINEAR = ["gram1", "gram_loops", "kept"]
CONVOLUTION = ["loop", "grouped", "bands", "unfolded", "gram", "loop, again", "grouped, again", "bands, again"]
CONVOLUTION += ["tiles", "tiles, again", "pictures, again"]


def ramp_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.flatten(1) * torch.linspace(-1.0, 1.0, outputs.flatten(1).shape[1])).sum(1)


def signs(places: int, size: float) -> Tensor:
    """Weights of alternating sign and one of 1, whose terms cancel where all places hold the same."""
    values = torch.where(torch.arange(places) % 2 == 0, size, -size)
    values[-1] = 1.0
    return values


def cancelling(kind: str, size: float) -> tuple[nn.Module, Tensor]:
    """A model whose tokens or places cancel to 1 / ``size`` of themselves, and rows for it."""
    torch.manual_seed(0)
    if kind == "tokens":
        weights = signs(17, size)
        module = Applied(lambda m, x: (m.inner(x) * weights[:, None]).sum(1), inner=nn.Linear(20, 30, bias=False))
        return module, torch.randn(6, 1, 20).repeat(1, 17, 1)
    if kind == "places":
        weights = signs(25, size)
        module = Applied(lambda m, x: (m.inner(x).flatten(2) * weights).sum(2), inner=nn.Conv2d(3, 9, 3, bias=False))
        return module, torch.randn(6, 3, 1, 1).repeat(1, 1, 7, 7)
    table = nn.Parameter(torch.randn(4, 6))
    return Applied(lambda m, x: _table_and_head(m.table, x, size), table=table), torch.randn(6, 1, 4)


def _table_and_head(table: Tensor, x: Tensor, size: float) -> Tensor:
    """Row 0 looked up by weight ``size``, and the same taken away by a map; and a little of the rest."""
    picks = torch.zeros(1, dtype=torch.int64)
    found = F.embedding(picks, table) * size
    again = F.linear(torch.ones(1, 1, 6) * size, table)[0, :, :1]
    return found - again * torch.ones(6) + F.linear(torch.ones(1, 1, 6), table)[0, :, 1:2] * x[:, :, :1].sum(-1)


def batch_of_rows(inputs: Tensor, unit: list[int], live: list[int]) -> PhysicalBatch:
    """Rows of the units in ``live``, in the order given, and padding after them."""
    rows = [row for row, slot in enumerate(unit) if slot in live]
    padded = torch.zeros_like(inputs)
    padded[: len(rows)] = inputs[rows]
    slots, weight = torch.arange(len(inputs)), torch.zeros(len(inputs))
    names = sorted(set(live), key=live.index)
    for at, row in enumerate(rows):
        slots[at] = names.index(unit[row])
        weight[at] = 1.0 / unit.count(unit[row])
    return PhysicalBatch(padded, torch.zeros(len(inputs), dtype=torch.int64), slots, weight)


@pytest.mark.parametrize("size", [1.0, 5.0, 20.0, 1e3, 1e6])
@pytest.mark.parametrize(
    ("kind", "way"), [*[("tokens", way) for way in LINEAR], *[("places", way) for way in CONVOLUTION], ("tied", "one")]
)
def test_terms_that_cancel_leave_the_bound_and_the_others_alone(kind: str, way: str, size: float) -> None:
    """Of six units each adds at most C (1 + 1e-6), and moves no other by more than 1e-6 C."""
    module, inputs = cancelling(kind, size)
    engine = engine_of(module, ramp_loss, 1e-3)
    by_way(way)(engine)
    units = list(range(6))
    alone = [run(engine, module, batch_of_rows(inputs, units, [unit])).total for unit in units]
    assert all(0 < float(one.norm()) <= 1e-3 * (1 + 1e-6) for one in alone)
    together = run(engine, module, batch_of_rows(inputs, units, units)).total
    assert float((together - torch.stack(alone).sum(0)).norm()) <= 1e-6 * 1e-3 * len(units)
    without = run(engine, module, batch_of_rows(inputs, units, units[1:])).total
    assert float((together - without - alone[0]).norm()) <= 1e-6 * 1e-3 * len(units)


@pytest.mark.parametrize("size", [1.0, 20.0, 1e6])
@pytest.mark.parametrize(("kind", "ways"), [("tokens", LINEAR), ("places", CONVOLUTION)])
def test_norms_do_not_depend_on_the_way(kind: str, ways: list[str], size: float) -> None:
    """A unit with many rows changes shapes, and with them the way that is the quickest, for all others."""
    module, inputs = cancelling(kind, size)
    sums: list[Tensor] = []
    norms: list[Tensor] = []
    for way in ways:
        engine = engine_of(module, ramp_loss, 1e-3)
        by_way(way)(engine)
        found = run(engine, module, batch_of_rows(inputs, list(range(6)), list(range(6))))
        sums.append(found.total)
        norms.append(found.stats.norms)
    for other_sum, other_norms in zip(sums[1:], norms[1:], strict=True):
        assert torch.allclose(other_norms, norms[0], rtol=1e-6)
        assert float((other_sum - sums[0]).norm()) <= 6e-6 * 1e-3


@pytest.mark.parametrize("size", [1.0, 1e6])
@pytest.mark.parametrize("kind", ["tokens", "places"])
def test_a_neighbour_of_many_rows_moves_no_other_unit(kind: str, size: float) -> None:
    module, inputs = cancelling(kind, size)
    unit = [0, 0, 0, 1, 2, 2]
    moved = []
    for first_way in (LINEAR if kind == "tokens" else CONVOLUTION)[:2]:
        engine = engine_of(module, ramp_loss, 1e-3)
        by_way(first_way)(engine)
        both = run(engine, module, batch_of_rows(inputs, unit, [0, 1, 2])).total
        one = run(engine, module, batch_of_rows(inputs, unit, [0])).total
        engine = engine_of(module, ramp_loss, 1e-3)  # without the unit of three rows shapes and timings are new
        rest = run(engine, module, batch_of_rows(inputs, unit, [1, 2])).total
        moved.append(float((both - one - rest).norm()) / 1e-3)
    assert max(moved) <= 2e-6


def test_rows_of_a_unit_that_cancel_do_not_depend_on_the_layout_of_others() -> None:
    """Three rows whose gradients cancel to a millionth, in a batch of equal units and in one of unequal ones."""
    module = Applied(lambda m, x: x * m.shift, shift=nn.Parameter(torch.ones(300)))
    torch.manual_seed(0)
    big = 1e6 * torch.randn(300)
    inputs = torch.stack([big, 0.7 * big, -1.7 * big + torch.randn(300), *torch.randn(5, 300)])
    equal = batch_of_rows(inputs[:6], [0, 0, 0, 1, 1, 1], [0, 1])
    unequal = batch_of_rows(inputs, [0, 0, 0, 1, 1, 1, 2, 3], [0, 1, 2])
    alone = batch_of_rows(inputs[:6], [0, 0, 0, 1, 1, 1], [0])
    norms = [run(engine_of(module, ramp_loss), module, batch).stats.norms[0] for batch in (equal, unequal, alone)]
    assert torch.allclose(norms[0], norms[1], rtol=1e-7) and torch.allclose(norms[0], norms[2], rtol=1e-7)


@pytest.mark.parametrize("build", [lambda: nn.Linear(8, 4), lambda: nn.Embedding(3, 4), lambda: nn.Conv1d(4, 4, 1)])
def test_sums_of_large_physical_batches(build: Any) -> None:
    """Of 4,096 equal units one moves the sum by C, and by at most 1e-4 C beside: float32 sums are cut short."""
    torch.manual_seed(0)
    module, rows = build(), 4096
    inputs = torch.ones(rows, 4, dtype=torch.int64) if isinstance(module, nn.Embedding) else torch.randn(1, 4, 8)
    inputs = inputs if len(inputs) == rows else inputs.repeat(rows, 1, 1)
    engine = engine_of(module, ramp_loss, 1e-2)
    units = list(range(rows))
    every = torch.arange(rows)
    total = run(engine, module, PhysicalBatch(inputs, every * 0, every, torch.ones(rows))).total
    weight = torch.ones(rows)
    weight[-1] = 0.0
    without = run(engine, module, PhysicalBatch(inputs, every * 0, every, weight)).total
    alone = run(engine, module, PhysicalBatch(inputs, every * 0, every, 1.0 - weight)).total
    assert float(total.norm()) == pytest.approx(1e-2 * len(units), rel=1e-5)
    assert float((total - without - alone).norm()) <= 1e-4 * 1e-2


@pytest.mark.parametrize("exponent", [-140, -100, -60, 0, 60, 66, 90, 104])
@pytest.mark.parametrize("tokens", [1, 5])
def test_sizes_from_the_smallest_to_the_largest(exponent: int, tokens: int) -> None:
    """Norms far outside of what float32 squares hold are true all the same, and clipped to C where they are above."""
    torch.manual_seed(0)
    module = nn.Linear(6, 3, bias=False)
    inputs = torch.randn(4, tokens, 6)
    inputs[1] *= 2.0**exponent
    engine = engine_of(module, ramp_loss, 1.0)
    found = run(engine, module, batch_of_rows(inputs, [0, 1, 2, 3], [1]))
    ramp = torch.linspace(-1.0, 1.0, 3 * tokens, dtype=torch.float64).view(tokens, 3)
    true = float((ramp.t() @ inputs[1].double()).norm())
    assert float(found.stats.norms[0]) == pytest.approx(true, rel=1e-5)
    assert float(found.total.norm()) == pytest.approx(min(true, 1.0), rel=1e-5)


@pytest.mark.parametrize("clip", [1e-3, 1.0, 1e9])
def test_contributions_fade_towards_the_largest_norm(clip: float) -> None:
    """No step from C to nothing: near any norm a contribution is nearly constant, up to infinity."""
    module = Applied(lambda m, x: x * m.shift, shift=nn.Parameter(torch.ones(1)))
    engine = engine_of(module, lambda outputs, targets: outputs.flatten(), clip)
    last = None
    for exponent in torch.linspace(104.0, 127.9, 120):
        found = run(engine, module, batch_of_rows(torch.full((1, 1), 2.0 ** float(exponent)), [0], [0]))
        size = float(found.total.norm()) / clip
        assert size <= 1 + 1e-6 and (last is None or abs(size - last) <= 0.3)
        last = size
    assert last == 0.0
