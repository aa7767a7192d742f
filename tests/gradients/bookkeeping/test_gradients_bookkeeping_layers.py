"""Embeddings, normalisation and recurrent layers, against float64 one row at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bookkeeping_reference import LAYOUTS, Applied, agree, batch_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn


@settings(max_examples=15)
@given(
    ids=st.lists(st.integers(0, 4), min_size=24, max_size=24),
    padding=st.sampled_from([None, 0, 3, -1]),
    layout=st.sampled_from(list(LAYOUTS)),
)
def test_embeddings_with_repeated_ids_and_padding(ids: list[int], padding: int | None, layout: str) -> None:
    torch.manual_seed(0)
    module = nn.Embedding(5, 3, padding_idx=padding)
    assert not agree(module, batch_of(torch.tensor(ids).view(6, 2, 2), layout), clip=1.0).without_rule


def test_a_bag_of_embeddings_and_plain_indexing_have_no_rule_but_are_right() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 5, (6, 4))
    indexed = Applied(lambda m, x: m.table[x], table=nn.Parameter(torch.randn(5, 3)))
    assert set(agree(indexed, batch_of(ids, "unequal")).without_rule) == {"__getitem__"}
    with pytest.warns(UserWarning, match="performance drop"):
        engine = agree(nn.EmbeddingBag(5, 3, mode="sum"), batch_of(ids, "unequal"))
    assert set(engine.without_rule) == {"embedding_bag"}


NORMS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "layer": (lambda affine: nn.LayerNorm(6, elementwise_affine=affine), (5, 6)),
    "layer over two dimensions": (lambda affine: nn.LayerNorm([5, 6], elementwise_affine=affine), (5, 6)),
    "layer without shift": (lambda affine: nn.LayerNorm(6, elementwise_affine=affine, bias=False), (5, 6)),
    "layer, row by row": (lambda affine: nn.LayerNorm(64, elementwise_affine=affine), (70, 64)),
    "group": (lambda affine: nn.GroupNorm(2, 4, affine=affine), (4, 3, 5)),
    "group of flat rows": (lambda affine: nn.GroupNorm(2, 8, affine=affine), (8,)),
    "instance": (lambda affine: nn.InstanceNorm2d(4, affine=affine), (4, 3, 5)),
    "instance of sequences": (lambda affine: nn.InstanceNorm1d(4, affine=affine), (4, 6)),
    "root mean square": (lambda affine: nn.RMSNorm(6, elementwise_affine=affine), (5, 6)),
}


@pytest.mark.parametrize("affine", ["all", "scale frozen", "shift frozen", "none"])
@pytest.mark.parametrize("norm", list(NORMS))
def test_normalisation(norm: str, affine: str) -> None:
    torch.manual_seed(0)
    build, shape = NORMS[norm]
    layer = build(affine != "none")
    for name, parameter in layer.named_parameters():
        nn.init.normal_(parameter)
        parameter.requires_grad_(affine != f"{'scale' if name == 'weight' else 'shift'} frozen")
    module = nn.Sequential(nn.Linear(shape[-1], shape[-1]), layer, nn.Tanh())
    assert set(agree(module, batch_of(torch.randn(6, *shape), "unequal")).without_rule) <= {"mul"}
    agree(module, batch_of(torch.randn(6, *shape), "padded"))


class Recurrent(nn.Module):
    """All that a recurrent layer returns, states included."""

    def __init__(self, layer: Any, learned_state: bool = False) -> None:
        super().__init__()
        self.layer = layer
        if learned_state:
            self.state = nn.Parameter(torch.randn(layer.num_layers * (2 if layer.bidirectional else 1), 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.layer.batch_first else x.transpose(0, 1)
        state = getattr(self, "state", None)
        given = (state, state) if state is not None and isinstance(self.layer, nn.LSTM) else state
        out, last = self.layer(x, given)
        lasts = last if isinstance(last, tuple) else (last,)
        return torch.cat([value.transpose(0, 1).flatten() for value in (out, *lasts)])[None]


@settings(max_examples=16)
@given(
    kind=st.sampled_from([nn.LSTM, nn.GRU, nn.RNN]),
    layers=st.integers(1, 2),
    both_ways=st.booleans(),
    bias=st.booleans(),
    batch_first=st.booleans(),
    learned_state=st.booleans(),
    layout=st.sampled_from(list(LAYOUTS)),
)
def test_recurrent_layers(
    kind: Any, layers: int, both_ways: bool, bias: bool, batch_first: bool, learned_state: bool, layout: str
) -> None:
    torch.manual_seed(0)
    layer = kind(3, 4, layers, bias=bias, batch_first=batch_first, bidirectional=both_ways)
    engine = agree(Recurrent(layer, learned_state), batch_of(torch.randn(6, 5, 3), layout))
    assert len(engine.without_rule) == learned_state


def test_recurrent_layers_of_relu_frozen_in_part_and_under_another_layer() -> None:
    torch.manual_seed(0)
    inputs = batch_of(torch.randn(6, 5, 3), "unequal")
    agree(Recurrent(nn.RNN(3, 4, nonlinearity="relu", batch_first=True)), inputs)
    part = nn.GRU(3, 4, batch_first=True)
    part.weight_hh_l0.requires_grad_(False)
    agree(Recurrent(part), inputs)
    agree(nn.Sequential(nn.Linear(3, 3), Recurrent(nn.LSTM(3, 4).requires_grad_(False))), inputs)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_cells_called_step_by_step(kind: Any) -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = kind(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            state, states = None, []
            for t in range(x.shape[1]):
                state = self.cell(x[:, t], state)
                states.append(state[0] if isinstance(state, tuple) else state)
            return torch.stack(states, 1)

    torch.manual_seed(0)
    for layout in ("padded", "unequal"):
        assert not agree(Loop(), batch_of(torch.randn(6, 5, 3), layout)).without_rule
