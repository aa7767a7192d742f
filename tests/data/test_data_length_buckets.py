"""Rows of tokens padded to public lengths: no token is lost, and the clipped sum is the same."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from dptrain.config import TrainConfig
from dptrain.data.batches import UnitIndex, physical_batches
from dptrain.data.length_buckets import LENGTHS, buckets_for, unit_lengths
from dptrain.data.source import Rows
from dptrain.errors import ConfigError
from dptrain.gradients.protocol import ClippingRule, EngineSettings, trainable
from dptrain.models.text_heads import own_tokens
from dptrain.registry import engines
from dptrain.training.assemble import lengths_of

PAD, TOKENS = 7, 40


def texts(lengths: list[int], unit_id: list[int]) -> Rows:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(8, 50, (len(lengths), TOKENS), generator=generator)
    for row, length in enumerate(lengths):
        ids[row, length:] = PAD
    return Rows(ids, torch.arange(len(lengths)) % 2, torch.tensor(unit_id))


class Tiny(nn.Module):
    """The mean over a row's own tokens of a layer of their embeddings and places."""

    takes_ids = any_length = True

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.pad, self.vocabulary = PAD, 50
        self.table, self.places, self.head = nn.Embedding(50, 6), nn.Embedding(TOKENS, 6), nn.Linear(6, 2)

    def forward(self, ids: Tensor) -> Tensor:
        own = own_tokens(ids, self.pad).float()[:, :, None]
        hidden = torch.tanh(self.table(ids) + self.places.weight[: ids.shape[1]])
        return self.head((hidden * own).sum(1) / own.sum(1))


def row_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def total(rows: Rows, draw: Tensor, lengths: Tensor | None, engine: str = "bookkeeping") -> tuple[Tensor, set[int]]:
    """The clipped sum of a draw at C = 0.1, and the lengths of its batches."""
    module, seen = Tiny(), set()
    made = engines.build(engine, module, row_loss, ClippingRule(0.1, None), EngineSettings())
    into = torch.zeros(sum(p.numel() for p in trainable(module).values()), dtype=torch.float64)
    for batch in physical_batches(draw, rows, UnitIndex(rows.unit_id), 4, None, lengths):
        seen.add(batch.inputs.shape[1])
        made.add_clipped_sum(batch, into)
    return into, seen


@pytest.mark.parametrize("engine", ["bookkeeping", "loop"])
@pytest.mark.parametrize("unit_id", [list(range(10)), [0, 0, 1, 1, 2, 2, 2, 3, 4, 5]], ids=["records", "users"])
def test_buckets_change_no_clipped_sum(engine: str, unit_id: list[int]) -> None:
    """Invariant 1, to a tenth of the slack a unit."""
    rows = texts([3, 40, 1, 9, 12, 5, 0, 17, 33, 8], unit_id)
    config, module, index = TrainConfig(), Tiny(), UnitIndex(rows.unit_id)
    draw = torch.arange(index.num_units)
    lengths = lengths_of(config, module, rows, index)
    config.execution.length_buckets = []
    assert lengths_of(config, module, rows, index) is None
    (one, many), (other, single) = total(rows, draw, lengths, engine), total(rows, draw, None, engine)
    assert single == {TOKENS} and len(many) > 1 and many <= {16, 32, TOKENS}
    assert float(other.norm()) > 0.1
    assert float((one - other).norm()) < len(draw) * 0.1 * 1e-3 / 10


@pytest.mark.parametrize(("kind", "use"), [("bert", "classify"), ("gpt2", "classify"), ("gpt2", "language")])
def test_buckets_change_no_sum_of_a_model_of_transformers(kind: str, use: str) -> None:
    pytest.importorskip("transformers")
    from dptrain.models.hf import hf

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    shape = sizes if kind == "bert" else {"n_embd": 8, "n_layer": 1, "n_head": 2}
    torch.manual_seed(0)
    outputs = 2 if use == "classify" else 1
    module = hf((TOKENS,), outputs, {"model_type": kind, "vocab_size": 50, **shape}, use=use, pad=PAD).train()
    loss = row_loss if use == "classify" else lambda outputs, targets: outputs[:, 0]
    rows, sums = texts([3, 40, 1, 9, 0, 17], list(range(6))), []
    index = UnitIndex(rows.unit_id)
    for lengths in (None, lengths_of(TrainConfig(), module, rows, index)):
        made = engines.build("bookkeeping", module, loss, ClippingRule(0.1, None), EngineSettings())
        sums.append(torch.zeros(sum(p.numel() for p in trainable(module).values()), dtype=torch.float64))
        for batch in physical_batches(torch.arange(6), rows, index, 3, None, lengths):
            made.add_clipped_sum(batch, sums[-1])
    assert lengths is not None and lengths.tolist() == [16, 40, 16, 16, 16, 32]
    assert float(sums[0].norm()) > 0.1 and float((sums[0] - sums[1]).norm()) < 6 * 0.1 * 1e-3 / 10


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_no_token_is_lost_and_every_unit_is_whole(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, TOKENS), min_size=1, max_size=12))
    unit_id = [data.draw(st.integers(0, 5)) for _ in lengths]
    rows, buckets = texts(lengths, unit_id), buckets_for(TOKENS, data.draw(st.sampled_from([None, [5, 20], [39]])))
    index = UnitIndex(rows.unit_id)
    cut = unit_lengths(rows.inputs, index, PAD, buckets)
    size = max(index.largest_unit, data.draw(st.integers(1, 6)))
    found = []
    for batch in physical_batches(torch.arange(index.num_units), rows, index, size, None, cut):
        assert batch.inputs.shape[0] == size and batch.inputs.shape[1] in buckets
        live = batch.inputs[batch.weight > 0]
        found += [tuple(row[row != PAD].tolist()) for row in live]
    assert sorted(found) == sorted(tuple(row[row != PAD].tolist()) for row in rows.inputs)


def test_the_longest_go_first_and_each_batch_is_as_long_as_its_longest() -> None:
    rows = texts([3, 40, 20, 20, 3, 3], list(range(6)))
    index = UnitIndex(rows.unit_id)
    cut = unit_lengths(rows.inputs, index, PAD, buckets_for(TOKENS, None))
    batches = list(physical_batches(torch.arange(6), rows, index, 2, None, cut))
    assert [b.inputs.shape[1] for b in batches] == [TOKENS, 32, 16]


def test_buckets_come_of_public_settings_alone() -> None:
    assert buckets_for(64, None) == [16, 32, 48, 64]
    assert buckets_for(64, [10, 200]) == [10, 64]
    assert buckets_for(8, None) == [8] and buckets_for(64, []) == [64]
    assert all(b <= 2 * a for a, b in pairwise(LENGTHS))


@pytest.mark.parametrize("change", ["numbers", "any_length", "pad"])
def test_what_is_no_text_is_left_as_it_is(change: str) -> None:
    rows, module = texts([3, 40], [0, 1]), Tiny()
    if change == "numbers":
        rows = Rows(rows.inputs.float(), rows.targets)
    elif change == "any_length":
        module.any_length = False  # pyright: ignore[reportAttributeAccessIssue]
    else:
        del module.pad
    assert lengths_of(TrainConfig(), module, rows, UnitIndex(rows.unit_id)) is None


def test_labels_of_tokens_are_cut_with_them() -> None:
    rows = texts([3, 5], [0, 1])
    tagged: Any = Rows(rows.inputs, (rows.inputs != PAD).long())
    (batch,) = physical_batches(torch.arange(2), tagged, UnitIndex(tagged.unit_id), 2, None, torch.tensor([16, 16]))
    assert batch.targets.shape == batch.inputs.shape == (2, 16) and int(batch.targets.sum()) == 8


def test_a_bucket_of_no_token_is_refused() -> None:
    from dptrain.compose import compose

    with pytest.raises(ConfigError, match=r"execution.length_buckets=0"):
        compose("train", ["execution.length_buckets=[0]"])
