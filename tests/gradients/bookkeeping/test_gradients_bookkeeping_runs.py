"""A physical batch taken in runs: the same sum and statistics, whole units, and borders made of sizes alone."""

from __future__ import annotations

import pytest
import torch
from bookkeeping_reference import Applied, square_loss, truth
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dptrain.data.batches import PhysicalBatch
from dptrain.errors import ConfigError
from dptrain.gradients.bookkeeping.choice import Chooser
from dptrain.gradients.bookkeeping.contribution import Outer, PerUnit
from dptrain.gradients.bookkeeping.engine import BookkeepingEngine
from dptrain.gradients.bookkeeping.meter import Meter
from dptrain.gradients.bookkeeping.runs import SAMPLES, Planner, RunningSum, Taken, runs
from dptrain.gradients.protocol import ClippingRule, EngineSettings, trainable


def model() -> nn.Module:
    """Every kind of contribution: an outer product, a held gradient, a convolution, a table."""
    torch.manual_seed(0)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        looked_up = m.get_submodule("table")(x[..., 0].abs().long() % 5)
        return m.get_submodule("inner")(torch.cat([x, looked_up], -1).transpose(1, 2))

    inner = nn.Sequential(nn.Conv1d(8, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))
    return Applied(forward, table=nn.Embedding(5, 2), inner=inner)


def batch_with(unit: list[int], weight: list[float]) -> PhysicalBatch:
    rows = torch.randn(len(unit), 6, 6, generator=torch.Generator().manual_seed(1)) * 2.0
    return PhysicalBatch(rows, torch.arange(len(unit)) % 3, torch.tensor(unit), torch.tensor(weight))


def engine_with(module: nn.Module, clip: float, limit: int | None) -> tuple[BookkeepingEngine, list[int]]:
    """An engine, and the list of the rows that go through at once, which grows as it works."""
    engine = BookkeepingEngine(module, square_loss, ClippingRule(clip, None), EngineSettings(pass_limit=limit))
    seen: list[int] = []
    take = engine._pass

    def spied(batch: PhysicalBatch, *rest: object) -> object:
        seen.append(len(batch.weight))
        return take(batch, *rest)  # pyright: ignore[reportArgumentType]

    engine._pass = spied  # pyright: ignore[reportAttributeAccessIssue]
    return engine, seen


LAYOUTS = st.lists(st.tuples(st.integers(0, 11), st.booleans()), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(LAYOUTS, st.sampled_from([0, 1 << 14, 1 << 16]))
def test_the_sum_and_every_statistic_are_those_of_one_unit_at_a_time(rows: list[tuple[int, bool]], limit: int) -> None:
    """Units of any sizes, scattered over the batch, some of them padding."""
    unit = [owner % len(rows) for owner, _ in rows]
    counts = {slot: unit.count(slot) for slot in unit}
    live = {slot: next(alive for owner, (_, alive) in zip(unit, rows, strict=True) if owner == slot) for slot in unit}
    batch = batch_with(unit, [live[slot] / counts[slot] for slot in unit])
    module = model()
    norms = truth(module, batch).stats.norms
    clip = float(norms[norms > 0].median()) if bool((norms > 0).any()) else 1.0
    expected = truth(module, batch, clip=clip)
    engine, seen = engine_with(module, clip, limit)
    for first in (True, False, False):
        seen.clear()
        total = torch.zeros_like(expected.total)
        stats = engine.add_clipped_sum(batch, total)
        assert torch.allclose(stats.norms, expected.stats.norms, rtol=1e-5, atol=1e-12)
        assert torch.allclose(stats.losses.double(), expected.stats.losses.double(), rtol=1e-4, atol=1e-4)
        assert float((total - expected.total).norm()) <= 1e-5 * max(float(expected.total.norm()), clip)
        assert sum(seen) == len(rows) + (sum(max(1, len(rows) // part) for part in SAMPLES) if first else 0)


@given(LAYOUTS, st.integers(1, 12))
def test_no_unit_is_split_and_every_row_goes_through_once(rows: list[tuple[int, bool]], size: int) -> None:
    unit = torch.tensor([owner % len(rows) for owner, _ in rows])
    batch = batch_with(unit.tolist(), [1.0] * len(rows))
    planner = Planner(1 << 30)
    planner.size = lambda shape, rows, left: size  # pyright: ignore[reportAttributeAccessIssue]
    found, of_run = list[int](), list[set[int]]()
    for run in runs(batch, planner):
        mine = torch.arange(len(rows))[run.rows]
        found += mine.tolist()
        of_run.append(set(unit[mine].tolist()))
        assert torch.equal(run.slots[run.batch.unit], unit[mine])
        assert torch.equal(run.batch.inputs, batch.inputs[mine])
        assert len(mine) <= size or len(of_run[-1]) == 1
    assert sorted(found) == list(range(len(rows)))
    assert sum(len(units) for units in of_run) == len(set(unit.tolist()))


def test_how_a_batch_is_cut_does_not_depend_on_what_its_rows_hold() -> None:
    """The same sizes, for a full draw, one that is mostly padding, and rows that are huge or not numbers at all."""
    module, cuts = model(), []
    whole = batch_with(list(range(64)), [1.0] * 64)
    few = batch_with(list(range(64)), [1.0] * 5 + [0.0] * 59)
    wild = PhysicalBatch(whole.inputs * 1e30, whole.targets, whole.unit, whole.weight)
    for batch in (whole, few, wild):
        engine, seen = engine_with(module, 1.0, 0)
        for _ in range(3):
            engine.clipped_parts(batch)
        cuts.append(seen)
    assert cuts[0] == cuts[1] == cuts[2] and cuts[0][-1] < 64


def test_a_pass_stays_under_the_limit() -> None:
    """What is alive at once, measured apart from what the planner noted, for a limit and for 0."""
    module = nn.Sequential(*(part for _ in range(6) for part in (nn.Linear(64, 64), nn.Tanh())), nn.Linear(64, 3))
    rows = torch.randn(256, 8, 64)
    batch = PhysicalBatch(rows, torch.zeros(256), torch.arange(256), torch.ones(256))
    loss = lambda outputs, targets: outputs.square().flatten(1).sum(1)  # noqa: E731
    most = {}
    for limit in (None, 0, 2 << 20):
        engine = BookkeepingEngine(module, loss, ClippingRule(1.0, None), EngineSettings(pass_limit=limit))
        engine.clipped_parts(batch)
        with Meter() as meter:
            engine.clipped_parts(batch)
        most[limit] = meter.most
    with Meter() as meter:
        total = loss(module(rows), None).sum()
        total.backward()
    assert most[2 << 20] <= 1.1 * (2 << 20) < most[0] < most[None]
    assert most[0] <= 1.3 * meter.most


def test_more_units_than_float32_may_add_are_added_in_float64() -> None:
    """512, and then what float32 would lose beside it."""
    tiny = torch.full((1, 3), 2.0**-26)
    for units, kept in ((512, 2.0**-26), (511, 0.0)):
        total = RunningSum()
        for part, count in ((torch.full((1, 3), 512.0), units), (tiny, 1), (torch.full((1, 3), -512.0), 0)):
            total.begin(count)
            total.add("weight", PerUnit(part), torch.ones(1, dtype=torch.float64))
        assert torch.equal(total.parts["weight"].double(), torch.full((3,), kept, dtype=torch.float64))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("loud", [None, torch.tensor([1])])
def test_outer_products_are_added_in_place_where_that_is_right(turned: bool, loud: Tensor | None) -> None:
    a, g = torch.randn(4, 3, 5), torch.randn(4, 3, 20)
    factor = torch.rand(4, dtype=torch.float64)
    part = Outer(a, g, torch.ones(4, dtype=torch.float64), loud, turned)
    total = RunningSum()
    for _ in range(3):
        total.begin(4)
        total.add("weight", part, factor)
    held = total.parts["weight"]
    assert torch.allclose(held, 3.0 * part.weighted_sum(factor).to(held.dtype), rtol=1e-5, atol=1e-6)
    assert held.dtype == (torch.float32 if loud is None else torch.float64)


def test_a_limit_that_the_sum_alone_uses_up_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"execution.memory_limit=1: is used up by the sum .*\(4 MiB\); raise it, or"):
        Planner.of(1 << 20, trainable(nn.Linear(1024, 1024)).values())


def test_runs_are_as_few_as_fit() -> None:
    shape = torch.Size([3])
    planner = Planner(1000, fixed=100)
    planner._taken[shape] = [
        Taken(10, 50.0, 100.0, 90.0),
        Taken(20, 100.0, 200.0, 180.0),
    ]  # 10 bytes a row, 9 at the end
    assert planner.size(shape, 100, 100) == 100  # 1000 fit, no sum beside
    assert planner.size(shape, 101, 101) == 51
    assert planner.size(shape, 270, 270) == 90  # 900 and the sum
    assert planner.size(shape, 271, 271) == 68
    planner._taken[shape] = [Taken(10, 50.0, 100.0, 100.0)]
    assert planner.size(shape, 100, 100) == 50  # 1000 fit, but not with the sum
    planner.limit = 0  # 5 bytes of activations a row, and the sum
    assert planner.size(shape, 100, 100) == 50


def test_ways_are_timed_on_some_units_and_taken_on_all() -> None:
    tried: list[int] = []

    def ways(units: int) -> dict[str, object]:
        def way() -> PerUnit:
            tried.append(units)
            return PerUnit(torch.ones(units, 3))

        return {"one": way, "other": way}

    chooser = Chooser()
    found = chooser.take("use", ways(128), 128, ways)  # pyright: ignore[reportArgumentType]
    assert len(found.squared_norm) == 128 and tried[-1] == 128 and set(tried[:-1]) == {32}
    assert all(timed.nbytes == 128 * 12 for timed in chooser.timings["use"].values())
