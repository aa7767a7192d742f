"""Rows of tokens that are cut behind their end, to one of a few lengths: the sum is that of whole rows."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor, nn

from dptrain.conformance.layers import loss
from dptrain.conformance.reference import added
from dptrain.conformance.stand import NORM_TOLERANCE, Result, Stand
from dptrain.data.batches import PhysicalBatch, UnitIndex, physical_batches
from dptrain.data.source import Rows
from dptrain.errors import ConfigError
from dptrain.gradients.protocol import ClippingRule, trainable
from dptrain.gradients.recompute import recompute, unit_gradients
from dptrain.training.assemble import build_engine, lengths_of

LONGEST, VOCABULARY, UNITS = 70, 14, 14
OFF = 1e-4
"""What the sum may be off by, over C, a unit."""


class Reader(nn.Module):
    """The mean of a row's tokens, with their places; what follows the last of them is never seen."""

    any_length, pad, takes_ids = True, 0, True

    def __init__(self) -> None:
        super().__init__()
        self.table, self.place = nn.Embedding(VOCABULARY, 5), nn.Parameter(torch.randn(LONGEST, 5))
        self.last = nn.Linear(5, 3)

    def forward(self, ids: Tensor) -> Tensor:
        seen = (ids != self.pad).flip(1).cumsum(1).flip(1).clamp(max=1)  # up to the last that is no padding
        x = torch.tanh(self.table(ids) + self.place[: ids.shape[1]]) * seen[..., None]
        return self.last(x.sum(1) / seen.sum(1, keepdim=True).clamp(min=1))


def token_lengths(stand: Stand) -> Result:
    """Rows that end just before, at and behind each bucket, some with padding in the middle, one or two a person."""
    name, generator = "token lengths", torch.Generator().manual_seed(4)
    ends = torch.tensor([1, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 70])
    most = 1 if stand.config.clipping.engine == "opacus_ghost" else 2
    unit = torch.repeat_interleave(torch.arange(UNITS), torch.tensor([1 + u % most for u in range(UNITS)]))
    ids = torch.randint(1, VOCABULARY, (len(unit), LONGEST), generator=generator)
    ids[:, 3:5] = torch.where(ends[unit, None] > 8, 0, ids[:, 3:5])
    ids[torch.arange(LONGEST)[None] >= ends[unit, None]] = 0
    rows = Rows(ids, torch.arange(len(unit)) % 3, unit)
    with torch.random.fork_rng([]):
        torch.manual_seed(22)
        module = Reader()
    execution = replace(stand.config.execution, dtype="float32", device="cpu", memory_limit=None, length_buckets=None)
    config, index, everyone = replace(stand.config, execution=execution), UnitIndex(unit), torch.arange(UNITS)
    whole = PhysicalBatch(ids, rows.targets, unit, 1.0 / torch.bincount(unit)[unit].float())
    clip = float(torch.stack([g.norm() for g in unit_gradients(module, loss, whole, everyone)]).median())
    wanted = recompute(module, loss, whole, everyone, clip)
    size = sum(p.numel() for p in trainable(module).values())
    total, told, shapes = torch.zeros(size, dtype=torch.float64), 0.0, set[int]()
    try:
        engine = build_engine(config, module, loss, ClippingRule(clip, None))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # vmap tells what it does slowly
            for batch in physical_batches(everyone, rows, index, 5, None, lengths_of(config, module, rows, index)):
                shapes.add(batch.inputs.shape[1])
                part, stats = added(engine, batch, size)
                total, told = total + part, told + float(stats.norms.sum())
    except ConfigError:
        return Result(name, None, "the engine declines a table of tokens with places")
    off = float((total - wanted.clipped_sum).norm()) / clip / UNITS
    low = 1.0 - told / float(wanted.norms.sum())
    says = f"rows cut to {sorted(shapes)} tokens are off by {off:.1e} C a unit (tolerance {OFF:.0e})"
    return Result(name, off <= OFF and low <= NORM_TOLERANCE["float32"], says)
