"""Mistakes in the rules of layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import dptrain.gradients.bookkeeping.attention as attention_module
from dptrain.data.batches import PhysicalBatch
from dptrain.gradients.bookkeeping.contribution import Table, squared_norms
from dptrain.gradients.bookkeeping.convolution import Convolved
from dptrain.gradients.bookkeeping.derived import Derived
from dptrain.gradients.bookkeeping.engine import BookkeepingEngine
from dptrain.gradients.bookkeeping.seen import RowGradients, Tokens
from dptrain.gradients.bookkeeping.tape import Tape

from .needed import POOLED, own
from .shared import Mutant, Patch, on_entered, on_norms


def token_mean_norm(patch: Patch) -> None:
    """A map's norm over tokens is |mean of inputs| |sum of gradients|, as if a row had one token."""

    def change(tape: Tape, name: str, seen: Any) -> Tensor | None:
        if not isinstance(seen, Tokens) or seen.a.shape[1] < 2:
            return None
        return squared_norms(seen.a.mean(1)) * squared_norms(seen.g.sum(1))

    on_entered(patch, change)


def gram_last_block_dropped(patch: Patch) -> None:
    """Gram products are taken in whole blocks of 15 tokens: of 21 tokens, norms see 15."""

    def change(tape: Tape, name: str, seen: Any) -> Tensor | None:
        if not isinstance(seen, Tokens) or seen.a.shape[1] < 15:
            return None
        whole = seen.a.shape[1] // 15 * 15
        return squared_norms(torch.bmm(seen.g[:, :whole].mT, seen.a[:, :whole]))

    on_entered(patch, change)


def border_unmeasured(patch: Patch) -> None:
    """A kernel's norm leaves out the places whose patch reaches into the padding: the border of every picture."""
    original = Convolved.resolve

    def resolve(self: Convolved, tape: Tape) -> Any:
        found = original(self, tape)
        if self.shape.padding == (1, 1) and self.shape.stride == (1, 1):
            inner = replace(self, g=self.g[..., 1:-1, 1:-1].contiguous(), shape=replace(self.shape, padding=(0, 0)))
            found.squared_norm = squared_norms(inner.looped())
        return found

    patch(Convolved, "resolve", resolve)


def dilation_forgotten(patch: Patch) -> None:
    """A kernel's norm is of neighbouring pixels, where its taps lie two apart."""
    original = Convolved.resolve

    def resolve(self: Convolved, tape: Tape) -> Any:
        found = original(self, tape)
        if self.shape.dilation == (2, 2):
            high, wide = (g + k - 1 for g, k in zip(self.g.shape[-2:], self.kernel.shape[-2:], strict=True))
            near = replace(self, x=self.x[..., :high, :wide].contiguous(), shape=replace(self.shape, dilation=(1, 1)))
            found.squared_norm = squared_norms(near.looped())
        return found

    patch(Convolved, "resolve", resolve)


def stride_forgotten(patch: Patch) -> None:
    """A kernel's norm is of neighbouring places, a corner of the picture, where its own are two apart."""
    original = Convolved.resolve

    def resolve(self: Convolved, tape: Tape) -> Any:
        found = original(self, tape)
        if self.shape.stride == (2, 2):
            high, wide = (g + k - 1 for g, k in zip(self.g.shape[-2:], self.kernel.shape[-2:], strict=True))
            near = replace(self, x=self.x[..., :high, :wide].contiguous(), shape=replace(self.shape, stride=(1, 1)))
            found.squared_norm = squared_norms(near.looped())
        return found

    patch(Convolved, "resolve", resolve)


def frames_apart(patch: Patch) -> None:
    """Pictures that one row brings to a convolution have norms of their own, whose squares are added."""
    original = Convolved.resolve

    def resolve(self: Convolved, tape: Tape) -> Any:
        found = original(self, tape)
        if self.x.shape[1] > 1:
            parts = [replace(self, x=self.x[:, [i]], g=self.g[:, [i]]) for i in range(self.x.shape[1])]
            found.squared_norm = torch.stack([squared_norms(part.looped()) for part in parts]).sum(0)
        return found

    patch(Convolved, "resolve", resolve)


def padding_tokens_unmeasured(patch: Patch) -> None:
    """Norms of a map leave out tokens that are padding; the model averages over them, so that they are in the sum."""
    original = BookkeepingEngine._forward

    def forward(self: BookkeepingEngine, tape: Any, batch: PhysicalBatch, *rest: Any) -> Any:
        tape.ids = batch.inputs
        return original(self, tape, batch, *rest)

    def change(tape: Any, name: str, seen: Any) -> Tensor | None:
        if not isinstance(seen, Tokens) or tape.ids.is_floating_point() or tape.ids.dim() < 2:
            return None
        own = tape.groups.gather((tape.ids != 0).to(seen.g.dtype)).flatten(1)
        return (
            squared_norms(torch.bmm((seen.g * own[:, :, None]).mT, seen.a)) if own.shape == seen.a.shape[:2] else None
        )

    patch(BookkeepingEngine, "_forward", forward)
    on_entered(patch, change)


def reverse_unmeasured(patch: Patch) -> None:
    """The weights of an LSTM's way back, whose names end in ``_reverse``, are outside norms."""
    on_norms(patch, lambda name, found: torch.zeros_like(found.squared_norm) if name.endswith("_reverse") else None)


def gru_candidate_unmeasured(patch: Patch) -> None:
    """Norms of a GRU's state map are of its two gates, without the candidate state, a third of its rows."""

    def change(tape: Tape, name: str, seen: Any) -> Tensor | None:
        if "hh" not in name:
            return None
        if isinstance(seen, Tokens):
            return squared_norms(torch.bmm(seen.g[:, :, : seen.g.shape[2] // 3 * 2].mT, seen.a))
        if isinstance(seen, RowGradients):
            return squared_norms(tape.groups.sum_rows(seen.gradient)[:, : seen.gradient.shape[1] // 3 * 2].contiguous())
        return None

    on_entered(patch, change)


def scaled_by_frequency(patch: Patch) -> None:
    """``scale_grad_by_freq``: a word's gradient is divided by how often all units of the batch use it."""
    original = Table.of_lookups

    def of_lookups(ids: Tensor, g: Tensor, rows: int, padding: int | None) -> Table:
        table = original(ids, g, rows, padding)
        counts = torch.bincount(ids.flatten(), minlength=rows).clamp(min=1)
        sums = table.sums * (4.0 / counts[table.row].to(g.dtype))[:, None]
        squared = torch.zeros_like(table.squared_norm).index_add_(0, table.unit, squared_norms(sums))
        return Table(sums, table.unit, table.row, rows, squared)

    patch(Table, "of_lookups", of_lookups)


def table_keys_collide(patch: Patch) -> None:
    """Units and ids share one number, unit times largest id: the last word of a unit is the first of the next."""

    def of_lookups(ids: Tensor, g: Tensor, rows: int, padding: int | None) -> Table:
        units, lookups = ids.shape
        keys = (ids + torch.arange(units)[:, None] * (rows - 1)).flatten()
        found, inverse = torch.unique(keys, return_inverse=True)
        values = g.reshape(units * lookups, -1)
        sums = values.new_zeros((len(found), values.shape[1])).index_add_(0, inverse, values)
        unit, row = (found // (rows - 1)).clamp(max=max(units - 1, 0)), found % (rows - 1)
        if padding is not None:
            sums = sums.masked_fill_((row == padding)[:, None], 0)
        squared = torch.zeros(units, dtype=torch.float64).index_add_(0, unit, squared_norms(sums))
        return Table(sums, unit, row, rows, squared)

    patch(Table, "of_lookups", of_lookups)


def derived_chunk_repeated(patch: Patch) -> None:
    """Of units that go back through a weight's computation in four chunks, the last are given the third's result."""
    original = Derived.pulled_back

    def pulled_back(self: Derived, name: str, gradient: Tensor) -> Iterator[tuple[str, Tensor]]:
        size = max(1, -(-len(gradient) // 4))
        for leaf, found in original(self, name, gradient):
            parts = list(found.split(size))
            if len(parts) > 1:
                parts[-1] = parts[-2][: len(parts[-1])]
            yield leaf, torch.cat(parts)

    patch(Derived, "pulled_back", pulled_back)


def attention_sees_next_row(patch: Patch) -> None:
    """Rows and tokens of attention's inputs are taken for each other: a row attends to its neighbour's tokens, too."""
    original = attention_module._attention

    def attention(tape: Tape, func: Any, query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> Any:
        def joined(q: Tensor, k: Tensor, v: Tensor, **settings: Any) -> Tensor:
            if settings.get("attn_mask") is None and not settings.get("is_causal"):
                k, v = (torch.cat([t, t.roll(1, 0)], -2) for t in (k, v))
            return func(q, k, v, **settings)

        return original(tape, joined, query, key, value, *rest, **more)

    patch(attention_module, "_attention", attention)


MUTANTS: dict[str, Mutant] = {
    "token_mean_norm": ("own", "norm from the tokens' mean input", token_mean_norm, own("patches")),
    "gram_last_block_dropped": (
        "own",
        "Gram norms leave out tokens behind the last whole block",
        gram_last_block_dropped,
        own("patches"),
    ),
    "border_unmeasured": ("own", "a padded border outside a kernel's norm", border_unmeasured, own("convolved")),
    "dilation_forgotten": ("own", "kernel's norm without its dilation", dilation_forgotten, own("convolved")),
    "stride_forgotten": ("own", "kernel's norm without its stride", stride_forgotten, own("strided")),
    "frames_apart": ("own", "a row's four pictures measured apart", frames_apart, own("frames")),
    "padding_tokens_unmeasured": ("own", "padding tokens of a map outside norms", padding_tokens_unmeasured, POOLED),
    "reverse_unmeasured": ("own", "an LSTM's way back outside norms", reverse_unmeasured, own("lstm")),
    "gru_candidate_unmeasured": ("own", "a GRU's candidate outside norms", gru_candidate_unmeasured, own("gru")),
    "scaled_by_frequency": ("3b.22", "words' gradients over their count in the batch", scaled_by_frequency, POOLED),
    "table_keys_collide": ("own", "a unit's last word is the next unit's first", table_keys_collide, POOLED),
    "derived_chunk_repeated": (
        "own",
        "last chunk of a computed weight's gradients is the third",
        derived_chunk_repeated,
        own("standard"),
    ),
    "attention_sees_next_row": ("3b.22", "a row attends to the next row", attention_sees_next_row, own("attending")),
}
