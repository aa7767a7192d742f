"""Attention, shared, frozen and bare parameters, against float64 one row at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bookkeeping_reference import LAYOUTS, Applied, agree, batch_of
from torch import Tensor, nn
from torch.nn import functional as F

Forward = Callable[[Any, Tensor], Tensor]
CAUSAL = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * 0.5)


def later_tokens_by_value(x: Tensor) -> Tensor:
    """A padding mask (1, 5) that differs from row to row, and leaves the first token."""
    return torch.cat([torch.zeros_like(x[:, :1, 0], dtype=torch.bool), x[:, 1:, 0] > 0.5], 1)


@pytest.mark.parametrize("masks", ["none", "causal", "padding", "both", "added"])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_multi_head_attention_of_a_sequence_to_itself(batch_first: bool, need_weights: bool, masks: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        given: dict[str, Any] = {"need_weights": need_weights}
        if masks in ("causal", "both"):
            given["attn_mask"] = CAUSAL
        if masks == "added":
            given["attn_mask"] = CAUSAL.to(x.dtype) * -3.0
        if masks in ("padding", "both"):
            given["key_padding_mask"] = later_tokens_by_value(x)
        x = x if batch_first else x.transpose(0, 1)
        return m.attend(x, x, x, **given)[0].reshape(1, -1)

    torch.manual_seed(0)
    module = Applied(forward, attend=nn.MultiheadAttention(6, 2, batch_first=batch_first))
    for layout in ("one row", "unequal"):
        assert not agree(module, batch_of(torch.randn(6, 5, 6), layout)).without_rule


def _heads(m: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (t.unflatten(-1, (2, 3)).transpose(1, 2) for t in m.inner(x).chunk(3, -1))
    return q, k, v


ATTENTION: dict[str, tuple[Forward, Callable[[], dict[str, Any]]]] = {
    "to learned queries": (
        lambda m, x: m.attend(m.extra, x, x)[0],
        lambda: {"attend": nn.MultiheadAttention(6, 2, batch_first=True), "extra": parameter(1, 3, 6)},
    ),
    "to another sequence": (
        lambda m, x: m.attend(x[:, :2], m.inner(x), x)[0],
        lambda: {"attend": nn.MultiheadAttention(6, 2, batch_first=True), "inner": nn.Linear(6, 6)},
    ),
    "to another sequence, without bias": (
        lambda m, x: m.attend(x[:, :2], x, x)[0],
        lambda: {"attend": nn.MultiheadAttention(6, 2, bias=False, batch_first=True)},
    ),
    "to learned keys": (
        lambda m, x: m.attend(x, m.extra, m.extra)[0],
        lambda: {"attend": nn.MultiheadAttention(6, 2, batch_first=True), "extra": parameter(1, 3, 6)},
    ),
    "keys of another size": (
        lambda m, x: m.attend(x, x[..., :4], x[..., :3])[0],
        lambda: {"attend": nn.MultiheadAttention(6, 2, kdim=4, vdim=3, batch_first=True)},
    ),
    "learned keys": (
        lambda m, x: m.attend(x, x, x)[0],
        lambda: {"attend": nn.MultiheadAttention(6, 2, add_bias_kv=True, add_zero_attn=True, batch_first=True)},
    ),
    "weights of every head": (
        lambda m, x: torch.cat([t.flatten(1) for t in m.attend(x, x, x, average_attn_weights=False)], 1),
        lambda: {"attend": nn.MultiheadAttention(6, 2, bias=False, batch_first=True)},
    ),
    "scaled dot product": (
        lambda m, x: F.scaled_dot_product_attention(*_heads(m, x), is_causal=True),
        lambda: {"inner": nn.Linear(6, 18)},
    ),
    "scaled dot product, mask of a row": (
        lambda m, x: F.scaled_dot_product_attention(
            *_heads(m, x), attn_mask=~later_tokens_by_value(x)[:, None, None], scale=0.3
        ),
        lambda: {"inner": nn.Linear(6, 18)},
    ),
    "scaled dot product, learned mask": (
        lambda m, x: F.scaled_dot_product_attention(*_heads(m, x), attn_mask=m.extra),
        lambda: {"inner": nn.Linear(6, 18), "extra": parameter(2, 5, 5)},
    ),
    "scaled dot product, learned queries": (
        lambda m, x: F.scaled_dot_product_attention(m.extra, m.inner(x), x),
        lambda: {"inner": nn.Linear(6, 6), "extra": parameter(1, 2, 6)},
    ),
    "an encoder": (
        lambda m, x: m.inner(x),
        lambda: {
            "inner": nn.TransformerEncoder(
                nn.TransformerEncoderLayer(6, 2, 8, 0.0, norm_first=True, batch_first=True), 2, None, False
            )
        },
    ),
    "an encoder's layer in eval mode": (
        lambda m, x: m.inner(x, src_mask=CAUSAL),
        lambda: {"inner": nn.TransformerEncoderLayer(6, 2, 8, 0.0, "gelu", batch_first=True).eval()},
    ),
    "a decoder's layer": (
        lambda m, x: m.inner(x, 0.5 * x),
        lambda: {"inner": nn.TransformerDecoderLayer(6, 2, 8, 0.0, batch_first=True)},
    ),
}


@pytest.mark.parametrize("name", list(ATTENTION))
def test_attention(name: str) -> None:
    torch.manual_seed(0)
    forward, parts = ATTENTION[name]
    module = Applied(forward, **parts())
    for layout in ("padded", "unequal"):
        agree(module, batch_of(torch.randn(6, 5, 6), layout))


def tied(padding: int | None = None) -> nn.Module:
    table = nn.Embedding(7, 6, padding_idx=padding)
    head = nn.Linear(6, 7, bias=False)
    head.weight = table.weight
    return nn.Sequential(table, nn.Linear(6, 6), nn.Tanh(), head)


SHARED: dict[str, Callable[[], nn.Module]] = {
    "table and head": tied,
    "table with padding, and head": lambda: tied(2),
    "table, turned": lambda: Applied(lambda m, x: m.table(x) @ m.table.weight.t(), table=nn.Embedding(7, 6)),
    "table both ways": lambda: Applied(
        lambda m, x: torch.softmax(m.table(x) @ m.table.weight.t(), -1) @ m.table.weight, table=nn.Embedding(7, 6)
    ),
    "two tables": lambda: Applied(
        lambda m, x: F.embedding(x, m.table) + F.embedding(6 - x, m.table), table=parameter(7, 6)
    ),
    "two tables of different padding": lambda: Applied(
        lambda m, x: F.embedding(x, m.table) + F.embedding(6 - x, m.table, padding_idx=1), table=parameter(7, 6)
    ),
}


@pytest.mark.parametrize("name", list(SHARED))
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_tables_shared_with_maps(name: str, layout: str) -> None:
    torch.manual_seed(0)
    assert not agree(SHARED[name](), batch_of(torch.randint(0, 7, (6, 5)), layout)).without_rule


def _lora() -> nn.Module:
    base = nn.Linear(6, 5).requires_grad_(False)
    parts = {"base": base, "down": nn.Linear(6, 2, bias=False), "up": nn.Linear(2, 5, bias=False)}
    return Applied(lambda m, x: m.base(x) + 2.0 * m.up(m.down(x)), **parts)


def _two_of_one_weight() -> nn.Module:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second)


def _bias_only() -> nn.Module:
    module = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    for name, value in module.named_parameters():
        value.requires_grad_(name.endswith("bias"))
    return module


MODELS: dict[str, Callable[[], nn.Module]] = {
    "a layer twice": lambda: Applied(lambda m, x: m.inner(torch.tanh(m.inner(x))), inner=nn.Linear(6, 6)),
    "a weight and its transpose": lambda: Applied(
        lambda m, x: torch.tanh(x @ m.weight.t()) @ m.weight, weight=parameter(4, 6)
    ),
    "a weight in two layers": _two_of_one_weight,
    "a convolution twice": lambda: Applied(
        lambda m, x: m.inner(torch.tanh(m.inner(x))), inner=nn.Conv1d(5, 5, 3, padding=1)
    ),
    "a weight in a map and a convolution": lambda: Applied(
        lambda m, x: F.linear(F.conv1d(x.mT, m.weight[:, :, None]).mT, m.weight), weight=parameter(6, 6)
    ),
    "a norm twice": lambda: Applied(
        lambda m, x: m.norm(m.inner(m.norm(x))), norm=nn.LayerNorm(6), inner=nn.Linear(6, 6)
    ),
    "frozen below": lambda: nn.Sequential(nn.Linear(6, 6).requires_grad_(False), nn.ReLU(), nn.Linear(6, 2)),
    "frozen above": lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2).requires_grad_(False)),
    "LoRA": _lora,
    "biases only": _bias_only,
    "an unused layer": lambda: Applied(lambda m, x: m.used(x), used=nn.Linear(6, 3), unused=nn.Linear(2, 2)),
    "a first token and positions": lambda: Applied(
        lambda m, x: m.inner(torch.cat([m.first.expand(len(x), -1, -1), x], 1) + m.positions[:, :6]),
        first=parameter(1, 1, 6), positions=parameter(1, 8, 6), inner=nn.Linear(6, 3),
    ),
    "a scale of a branch": lambda: Applied(
        lambda m, x: x + m.scale * m.inner(x), scale=parameter(6), inner=nn.Linear(6, 6)
    ),
    "a list of parameters": lambda: Applied(
        lambda m, x: x @ torch.stack(list(m.rows)).t(), rows=nn.ParameterList([parameter(6), parameter(6)])
    ),
    "PReLU": lambda: nn.Sequential(nn.Linear(6, 6), nn.PReLU()),
    "frozen batch norm": lambda: nn.Sequential(nn.Conv1d(5, 4, 1), nn.BatchNorm1d(4)).eval(),
    "a parametrised weight": lambda: nn.utils.parametrizations.orthogonal(nn.Linear(6, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", list(MODELS))
def test_models(name: str) -> None:
    torch.manual_seed(0)
    module = MODELS[name]()
    for layout in ("padded", "unequal", "mixed up"):
        agree(module, batch_of(torch.randn(6, 5, 6), layout))


@pytest.mark.parametrize("build", [lambda: nn.Linear(6, 3), lambda: nn.Conv1d(5, 3, 3)])
def test_weight_norm(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module = nn.utils.parametrizations.weight_norm(build())
    assert not agree(module, batch_of(torch.randn(6, 5, 6), "unequal")).without_rule
