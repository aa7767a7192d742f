"""A convolution's gradients and norms by compiled loops, against torch's own in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from bookkeeping_reference import LAYOUTS, agree, batch_of, by_way, contributions_agree, engine_of, run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("numba", reason="needs the extra 'fast'")

from dptrain.gradients.bookkeeping import convolution as module_of_ways
from dptrain.gradients.bookkeeping.convolution import Convolved, Shape
from dptrain.gradients.bookkeeping.convolution_gram import picture_norms
from dptrain.gradients.bookkeeping.convolution_loops import per_unit_gradients
from dptrain.gradients.bookkeeping.tiles import LANES, rows_of

COMPILED = ["tiles", "tiles, again", "pictures, again"]


def seen(x: Tensor, outputs: int, kernel: tuple[int, ...], shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of outputs (U, M, O, *S') for inputs (U, M, C, *S), the weight, and its gradients in float64."""
    weight = torch.zeros(outputs, x.shape[2] // shape.groups, *kernel)
    convolve: Any = {1: F.conv1d, 2: F.conv2d}[len(kernel)]
    places = convolve(x[0], weight, None, shape.stride, shape.padding, shape.dilation, shape.groups).shape[1:]
    g = torch.randn(*x.shape[:2], *places)
    true = [shape.weight_gradient(b.double(), a.double(), weight.double()) for a, b in zip(x, g, strict=True)]
    return g, weight, torch.stack(true)


@settings(max_examples=80, deadline=None)
@given(
    dims=st.integers(1, 2),
    images=st.integers(1, 3),
    channels=st.integers(1, 5),
    outputs=st.integers(1, 3 * LANES),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 11)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 3)),
    groups=st.integers(1, 3),
    size=st.tuples(st.integers(4, 9), st.integers(11, 40)),
    seed=st.integers(0, 9),
)
def test_gradients_are_those_of_float64(
    dims: int, images: int, channels: int, outputs: int, kernel: Any, stride: Any, padding: Any, groups: int, size: Any,
    seed: int,
) -> None:  # fmt: skip
    """Widths of kernels that tiles divide and that they do not; outputs that fill registers and that do not."""
    torch.manual_seed(seed)
    kernel, stride, padding, size = (value[-dims:] for value in (kernel, stride, padding, size))
    shape = Shape(stride, padding, (1,) * dims, groups)
    x = torch.randn(2, images, channels * groups, *size)
    g, weight, true = seen(x, outputs * groups, kernel, shape)
    found = per_unit_gradients(x, g, weight.shape, stride, padding, groups)
    assert found.is_contiguous()
    found = found.transpose(2, 3).reshape(true.shape)
    places = math.prod(g.shape[3:]) * images
    assert float((found - true).norm()) <= 1e-7 * places**0.5 * float(x.norm() * g.norm())
    assert float((found - true).abs().max()) <= 3e-6 * float(true.abs().max() + 1.0)


@settings(max_examples=60, deadline=None)
@given(
    channels=st.integers(1, 2 * LANES),
    outputs=st.integers(1, 2 * LANES),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    size=st.tuples(st.integers(9, 12), st.integers(9, 13)),
    seed=st.integers(0, 9),
)
def test_norms_are_those_of_float64(
    channels: int, outputs: int, kernel: Any, padding: Any, dilation: Any, size: Any, seed: int
) -> None:
    torch.manual_seed(seed)
    shape = Shape((1, 1), padding, dilation, 1)
    x = torch.randn(2, 1, channels, *size)
    g, weight, true = seen(x, outputs, kernel, shape)
    squared, norms_x, norms_g = picture_norms(x[:, 0], g[:, 0], weight.shape, padding, dilation)
    patches = F.unfold(x[:, 0].double(), kernel, dilation, padding, 1)
    assert torch.allclose(norms_x, patches.norm(dim=1), rtol=1e-6)
    assert torch.allclose(norms_g, g[:, 0].flatten(2).double().norm(dim=1), rtol=1e-6)
    truth = true.flatten(1).square().sum(1)
    cancelled = (norms_x * norms_g).sum(1).square() / truth
    assert bool(((squared / truth - 1).abs() <= 1e-6 + 2e-8 * cancelled).all())


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("way", COMPILED)
def test_whole_models(way: str, layout: str) -> None:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 9, 3, padding=1), nn.Tanh(), nn.Conv2d(9, 16, 2), nn.Tanh(), nn.Flatten(2)]
    if way != "pictures, again":
        parts += [nn.Conv1d(16, 24, 2, stride=2, groups=2), nn.Tanh()]
    module = nn.Sequential(*parts)
    engine = agree(module, batch_of(torch.randn(6, 3, 5, 4), layout), prepare=by_way(way))
    if way != "pictures, again" or layout in ("one row", "padded"):  # it is for units of one picture
        assert not engine.chooser.timings
    contributions_agree(module, batch_of(torch.randn(6, 3, 5, 4), layout))


def test_ways_are_offered_where_they_can_be_taken() -> None:
    torch.manual_seed(0)
    engine = engine_of(nn.Conv2d(3, 16, 3))
    engine.chooser.compiled = True
    offered: dict[str, set[str]] = {}
    for name, module, rows in (
        ("plain", nn.Conv2d(12, 16, 3), torch.randn(5, 12, 8, 8)),
        ("many places", nn.Conv2d(3, 16, 3), torch.randn(5, 3, 20, 20)),
        ("strided", nn.Conv2d(3, 16, 3, stride=2), torch.randn(5, 3, 8, 8)),
        ("dilated", nn.Conv2d(3, 16, 3, dilation=2), torch.randn(5, 3, 8, 8)),
        ("few outputs", nn.Conv2d(3, 7, 3), torch.randn(5, 3, 8, 8)),
        ("depthwise", nn.Conv2d(16, 16, 3, groups=16), torch.randn(5, 16, 8, 8)),
        ("three dimensions", nn.Conv3d(3, 16, 3), torch.randn(5, 3, 4, 4, 4)),
        ("float64", nn.Conv2d(3, 16, 3).double(), torch.randn(5, 3, 8, 8).double()),
        ("one kernel place", nn.Conv2d(3, 16, 1), torch.randn(5, 3, 8, 8)),
    ):
        engine = engine_of(module)
        engine.chooser.compiled = True
        run(engine, module, batch_of(rows))
        offered[name] = {way for found in engine.chooser.timings.values() for way in found} & set(COMPILED)
    assert offered == {
        "plain": set(COMPILED),
        "many places": {"tiles", "tiles, again"},
        "strided": {"tiles", "tiles, again"},
        "dilated": set(),
        "few outputs": set(),
        "depthwise": set(),
        "three dimensions": set(),
        "float64": set(),
        "one kernel place": {"tiles", "tiles, again"},
    }


@pytest.mark.parametrize("way", COMPILED)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_units_that_are_not_finite_say_so_and_touch_nobody_else(way: str, bad: float) -> None:
    """1e30 is finite, but its square is not in float32: such a unit is taken in float64."""
    torch.manual_seed(0)
    x = torch.randn(4, 1, 3, 6, 7)
    g, weight, true = seen(x, 16, (3, 3), Shape((1, 1), (1, 1), (1, 1), 1))
    for spoilt in (x, g):
        held = spoilt[2, 0, 1, 3, 3].item()
        spoilt[2, 0, 1, 3, 3] = bad
        convolved = Convolved(x, g, weight, Shape((1, 1), (1, 1), (1, 1), 1))
        found = {
            "tiles": lambda c=convolved: c.held(c.tiled, turned=(1, 2), whole=weight.shape),
            "tiles, again": lambda c=convolved: c.again(c.tiled),
            "pictures, again": convolved.by_pictures,
        }[way]()
        if math.isfinite(bad):
            expected = convolved.in_float64(2).square().sum()
            assert float(found.squared_norm[2]) == pytest.approx(float(expected), rel=1e-5)
        else:
            assert not bool(found.squared_norm[2].isfinite())
        others = torch.tensor([0, 1, 3])
        assert torch.allclose(found.squared_norm[others], true.flatten(1).square().sum(1)[others], rtol=1e-5)
        found.silence(torch.tensor([False, False, True, False]))
        total = found.weighted_sum(torch.tensor([1.0, 0.5, 0.0, 2.0], dtype=torch.float64))
        wanted = true[0] + 0.5 * true[1] + 2.0 * true[3]
        assert total.shape == weight.shape
        assert float((total - wanted).norm()) <= 1e-5 * float(wanted.norm())
        spoilt[2, 0, 1, 3, 3] = held


def test_units_whose_places_cancel_are_taken_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 1, 4, 1, 1).repeat(1, 1, 1, 9, 9)
    weight = torch.zeros(16, 4, 3, 3)
    g = torch.randn(3, 1, 16, 1, 1) * torch.where(torch.arange(49) % 2 == 0, 1.0, -1.0).view(7, 7)
    g = g + 1e-3 * torch.randn(3, 1, 16, 7, 7)
    g[0] = torch.randn(1, 16, 7, 7)
    convolved = Convolved(x, g, weight, Shape((1, 1), (0, 0), (1, 1), 1))
    asked: list[int] = []
    original = Convolved.in_float64

    def noted(self: Convolved, unit: int) -> Tensor:
        asked.append(unit)
        return original(self, unit)

    monkeypatch.setattr(module_of_ways.Convolved, "in_float64", noted)
    found = convolved.by_pictures()
    assert sorted(asked) == [1, 2]
    true = torch.stack([original(convolved, unit) for unit in range(3)])
    assert torch.allclose(found.squared_norm, true.flatten(1).square().sum(1), rtol=2e-6)


def test_a_tile_fits_into_registers() -> None:
    for columns in range(1, 8):
        for vectors in (1, 2):
            assert 1 <= rows_of(columns, vectors) <= 8
            assert rows_of(columns, vectors) * columns * vectors <= (20 if LANES == 16 else 14)
