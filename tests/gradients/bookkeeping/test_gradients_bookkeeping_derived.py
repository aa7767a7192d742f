"""Weights computed from parameters alone: through rules, and back to the parameters, against float64 row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bookkeeping_reference import LAYOUTS, Applied, agree, batch_of, contributions_agree, engine_of, refused, run
from torch import Tensor, nn
from torch.nn import functional as F

from dptrain.gradients.bookkeeping import tape
from dptrain.gradients.bookkeeping.derived import reads_no_row
from dptrain.models.wrn import ScaledConv2d

FORMS: dict[str, tuple[Callable[[Any, Tensor], Any], set[str]]] = {
    "power": (lambda m, x: F.linear(x, m.wide**2), set()),
    "a chain": (lambda m, x: F.linear(x, torch.softmax(m.wide / m.wide.std(), 1) * m.shift[:, None].exp()), set()),
    "a part": (lambda m, x: F.linear(x, m.wide[:2]), set()),
    "another shape": (lambda m, x: F.linear(x, m.tall.view(3, 6)), set()),
    "a bias": (lambda m, x: F.linear(x, m.wide, 2 * m.shift), set()),
    "two uses of one value": (
        lambda m, x: (lambda w: F.linear(x, w) + F.linear(x.tanh(), w, m.shift))(m.wide.sin()),
        set(),
    ),
    "the value and the weight": (lambda m, x: F.linear(x, m.wide) + F.linear(x, m.wide.exp()), set()),
    "a value of a value, both used": (
        lambda m, x: (lambda w: F.linear(x, w) * F.linear(x, w.square()))(m.wide.cos()),
        set(),
    ),
    "two weights in one": (lambda m, x: F.linear(x, m.wide + m.tall.t()), set()),
    "several at once": (lambda m, x: sum(F.linear(x, w) for w in m.wide.chunk(3, dim=0)), set()),
    "cast": (lambda m, x: F.linear(x.double(), m.wide.double()).float(), set()),
    "no gradient": (lambda m, x: F.linear(x, m.wide * m.wide.detach().abs().mean()), set()),
    "under no_grad": (lambda m, x: F.linear(x, m.wide / _norm(m.wide)), set()),
    "met by rows": (lambda m, x: x * m.wide[0].exp(), {"mul"}),
    "written to": (lambda m, x: F.linear(x, _written(m.wide)), {"clone"}),
    "repeated for rows": (lambda m, x: torch.cat([m.wide.expand(len(x), -1, -1), x], 1), {"cat"}),
}


def _twice(x: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    return F.linear(x, weight) + F.linear(x.tanh(), weight, shift)


def _norm(weight: Tensor) -> Tensor:
    with torch.no_grad():
        return weight.norm()


def _written(weight: Tensor) -> Tensor:
    copy = weight.clone()
    copy[:, 0] = 0.0
    return copy


@pytest.mark.parametrize("form", list(FORMS))
def test_values_computed_from_weights(form: str) -> None:
    torch.manual_seed(0)
    forward, without_rule = FORMS[form]
    module = Applied(forward, tall=nn.Parameter(torch.randn(6, 3)), wide=nn.Parameter(torch.randn(3, 6)))
    module.shift = nn.Parameter(torch.randn(3))
    for layout in LAYOUTS:
        engine = agree(module, batch_of(torch.randn(6, 5, 6), layout))
        assert without_rule <= set(engine.without_rule) and bool(without_rule) == bool(engine.without_rule)
    contributions_agree(module, batch_of(torch.randn(6, 5, 6), "unequal"))


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_standardised_convolutions(layout: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        ScaledConv2d(3, 4, 3, 1, 1), nn.ReLU(), ScaledConv2d(4, 6, 3, 2, 1), nn.Flatten(), nn.Linear(6 * 16, 3)
    )
    assert not agree(module, batch_of(torch.randn(6, 3, 8, 8), layout)).without_rule


def test_units_in_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("dptrain.gradients.bookkeeping.derived.CHUNK", 100)
    module = Applied(lambda m, x: F.linear(x, m.wide.tanh()), wide=nn.Parameter(torch.randn(3, 6)))
    agree(module, batch_of(torch.randn(6, 5, 6)))


class _Unseen(torch.autograd.Function):
    """Written by hand, so that no torch function is called with the weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(weight, x)
        return x * weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        weight, x = ctx.saved_tensors
        return grads[0] * x, grads[0] * weight


def test_a_value_that_a_hand_written_function_reads_is_refused() -> None:
    module = Applied(lambda m, x: _Unseen.apply(m.wide.exp(), x), wide=nn.Parameter(torch.randn(6)))
    refused(module, batch_of(torch.randn(6, 5, 6)), "clipping.engine")


def test_random_numbers_for_weights_are_each_row_s_own() -> None:
    torch.manual_seed(0)
    module = Applied(lambda m, x: F.linear(x, F.dropout(m.wide, 0.5)), wide=nn.Parameter(torch.randn(3, 6)))
    engine = engine_of(module)
    found = run(engine, module, batch_of(torch.randn(6, 5, 6)))
    assert bool(found.stats.norms.isfinite().all()) and engine.without_rule


class Learned(nn.Module):
    """A layer's function is called on parameters in the place of rows."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.use = use
        self.tokens = nn.Parameter(torch.randn(4, 5))
        self.filters = nn.Parameter(torch.randn(2, 4, 3))
        self.scale, self.shift = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(5))
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((x[:, None, :] * self.learned(x)).tanh().sum(1))

    def learned(self, x: Tensor) -> Tensor:
        if self.use == "layer norm":
            return F.layer_norm(self.tokens, (5,), self.scale, self.shift)
        if self.use == "rms norm":
            return F.rms_norm(self.tokens, (5,), self.scale)
        if self.use == "group norm":
            return F.group_norm(self.filters, 2).sin().sum() * self.tokens
        if self.use == "convolution of a filter with itself":
            turned = self.filters.transpose(1, 2).reshape(2, 4, 3)
            return F.conv1d(self.filters, turned).sum() * self.tokens
        if self.use == "convolution of a filter with rows":
            return F.conv1d(self.filters, x[0, :4, None].expand(2, 4, 1)).sum() * self.tokens
        whole = self.tokens[None]
        return F.scaled_dot_product_attention(whole, whole, whole)[0]


@pytest.mark.parametrize("derives", [True, False])
@pytest.mark.parametrize(
    "use",
    [
        "layer norm",
        "rms norm",
        "group norm",
        "convolution of a filter with itself",
        "convolution of a filter with rows",
        "attention",
    ],
)
def test_parameters_in_the_place_of_rows_keep_their_gradient(
    use: str, derives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter convolved with itself once lost the gradient of one of its two places, without a word."""
    monkeypatch.setattr(tape, "reads_no_row", reads_no_row if derives else lambda args, kwargs: False)
    torch.manual_seed(0)
    agree(Learned(use), batch_of(torch.randn(6, 5), "unequal"))
