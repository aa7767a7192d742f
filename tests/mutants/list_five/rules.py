"""Mistakes in what single kinds of layers give to norms and sums."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import dptrain.gradients.bookkeeping.tape as tape_module
from dptrain.gradients.bookkeeping.contribution import Contribution, Outer, Table
from dptrain.gradients.bookkeeping.linear import LinearRecord
from dptrain.gradients.bookkeeping.normalisation import _GroupNorm
from dptrain.gradients.bookkeeping.recurrent import _Layer
from dptrain.gradients.bookkeeping.seen import Lookups, RowGradients, Seen, Tokens, UnitGradients
from dptrain.gradients.bookkeeping.tape import Tape

from .needed import PLACED, own
from .shared import Mutant, Patch


def square_sum_transposed(patch: Patch) -> None:
    """Sums of square matrices come out transposed: no shape says that they are wrong."""
    original = Outer.weighted_sum

    def weighted_sum(self: Outer, factor: Tensor) -> Tensor:
        out = original(self, factor)
        return out.t().contiguous() if out.dim() == 2 and out.shape[0] == out.shape[1] else out

    patch(Outer, "weighted_sum", weighted_sum)


def table_rows_overwritten(patch: Patch) -> None:
    """Of several units that look up one row of a table, only the last one's gradient stays in the sum."""

    def add_to(self: Table, table: Tensor, factor: Tensor) -> Tensor:
        scale = factor.to(self.sums.dtype)[self.unit][:, None]
        return table.index_copy_(0, self.row, (self.sums * scale).to(table.dtype))

    patch(Table, "add_to", add_to)


def adapter_measured_merged(patch: Patch) -> None:
    """The norm of an adapter is that of the gradient of its two factors' product, as if it were merged already."""
    original = Tape.enter

    def enter(self: Tape, name: str, seen: Any) -> None:
        original(self, name, seen)
        if not isinstance(seen, Tokens):
            return
        if name.endswith("lora_b.weight"):
            self.__dict__["behind"] = seen.g
        elif name.endswith("lora_a.weight") and "behind" in self.__dict__:
            behind = self.__dict__.pop("behind")
            merged = torch.bmm(behind.transpose(1, 2).double(), seen.a.double()).square().sum((1, 2))
            self.contributions[name].squared_norm = merged
            other = self.contributions[name.replace("lora_a", "lora_b")]
            other.squared_norm = torch.zeros_like(other.squared_norm)

    patch(Tape, "enter", enter)


def scaled_weight_apart(patch: Patch) -> None:
    """A weight that is used as it is and scaled has the two uses' norms added up without what they have in common."""
    original = tape_module.combine

    def combine(tape: Tape, seen: list[Seen]) -> Contribution:
        found = original(tape, seen)
        if len(seen) > 1 and any(isinstance(use, UnitGradients) for use in seen):
            found.squared_norm = torch.stack([use.resolve(tape).squared_norm for use in seen]).sum(0)
        return found

    patch(tape_module, "combine", combine)


def group_centre_forgotten(patch: Patch) -> None:
    """The gradient of a group norm's scale is taken with inputs whose mean was not taken off."""
    original = _GroupNorm.backward

    def backward(ctx: Any, *grads: Tensor) -> Any:
        record = ctx.record
        if record is not None:
            x, _, rstd, _ = ctx.saved_tensors
            products = (grads[0].reshape(x.shape) * x).flatten(2).sum(2)
            wrong = products * rstd.repeat_interleave(x.shape[1] // ctx.groups, 1)
            ctx.record = lambda _, of_shift: record(wrong.unflatten(0, ctx.rows).sum(1), of_shift)
        return original(ctx, *grads)

    patch(_GroupNorm, "backward", staticmethod(backward))


def bias_of_first_token(patch: Patch) -> None:
    """A bias has the gradient of a row's first token, not of all of them."""
    original = LinearRecord.enter

    def enter(self: LinearRecord, x: Tensor, g: Tensor) -> None:
        tokens = g.reshape(len(g), -1, g.shape[-1])
        if self.bias is None or self.part is not None or tokens.shape[1] == 1:
            return original(self, x, g)
        self.tape.enter(self.bias, RowGradients(tokens[:, 0]))
        return original(replace(self, bias=None), x, g)

    patch(LinearRecord, "enter", enter)


def states_one_late(patch: Patch) -> None:
    """A recurrent weight's gradient is taken with the states behind each step, not with those in front of it."""
    original = _Layer.enter

    def enter(self: Any, x: Tensor, h: Tensor, of_zi: Tensor, of_zh: Tensor) -> None:
        original(self, x, torch.cat([h[:, 1:], h[:, -1:]], 1), of_zi, of_zh)

    patch(_Layer, "enter", enter)


def places_measured_by_mean(patch: Patch) -> None:
    """A table of places, whose ids are the same for all rows, is measured once for the batch: by the mean gradient."""
    original = Tape.enter

    def enter(self: Tape, name: str, seen: Any) -> None:
        original(self, name, seen)
        live = self.groups.live
        if isinstance(seen, Lookups) and bool(live.any()) and bool((seen.ids == seen.ids[:1]).all()):
            mean = seen.g[live].double().mean(0)
            self.contributions[name].squared_norm = torch.where(live, mean.square().sum(), 0.0)

    patch(Tape, "enter", enter)


MUTANTS: dict[str, Mutant] = {
    "square_sum_transposed": (
        "own",
        "sums of square matrices are transposed",
        square_sum_transposed,
        ("model.options.hidden=[32,32]",),
    ),
    "table_rows_overwritten": (
        "3b.9",
        "of a table's row, the last unit's gradient alone",
        table_rows_overwritten,
        PLACED,
    ),
    "adapter_measured_merged": (
        "own",
        "adapter's norm is that of the merged weight",
        adapter_measured_merged,
        own("adapted"),
    ),
    "scaled_weight_apart": (
        "3b.21",
        "a weight and its multiple measured apart",
        scaled_weight_apart,
        own("two_ways"),
    ),
    "group_centre_forgotten": (
        "own",
        "scale of a group norm without the mean taken off",
        group_centre_forgotten,
        own("grouped"),
    ),
    "bias_of_first_token": ("own", "biases have the first token's gradient", bias_of_first_token, own("lines")),
    "states_one_late": ("own", "recurrent weight's states are a step late", states_one_late, own("lstm")),
    "places_measured_by_mean": (
        "Opacus, positions by arange",
        "table of places measured by the mean gradient",
        places_measured_by_mean,
        PLACED,
    ),
}
