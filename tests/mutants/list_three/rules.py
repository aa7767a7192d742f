"""Mistakes in the rules of layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import dptrain.gradients.bookkeeping.attention as attention_module
import dptrain.gradients.bookkeeping.convolution as convolution_module
import dptrain.gradients.bookkeeping.linear as linear_module
import dptrain.gradients.bookkeeping.recurrent as recurrent_module
import dptrain.gradients.bookkeeping.seen as seen_module
from dptrain.gradients.bookkeeping.contribution import Contribution, squared_norms
from dptrain.gradients.bookkeeping.convolution import Convolved
from dptrain.gradients.bookkeeping.linear import LinearRecord
from dptrain.gradients.bookkeeping.recurrent import _Unrolled
from dptrain.gradients.bookkeeping.seen import Tokens
from dptrain.gradients.bookkeeping.tape import Tape

from .needed import MASKED, own
from .shared import Mutant, Patch, on_entered, on_norms


def packed_bias_unmeasured(patch: Patch) -> None:
    """The bias of an attention's packed projections is in the sum, but not in the norm."""
    original = LinearRecord.enter

    def enter(self: LinearRecord, x: Tensor, g: Tensor) -> None:
        original(self, x, g)
        if self.part is not None and self.bias is not None:
            self.tape.__dict__.setdefault("packed", set()).add(self.bias)

    patch(LinearRecord, "enter", enter)
    _forgotten(patch, "packed")


def _forgotten(patch: Patch, names: str) -> None:
    """The parameters whose names are in that attribute of a tape have no norm."""
    finish = Tape.finish

    def finished(self: Tape) -> dict[str, Contribution]:
        found = finish(self)
        for name in self.__dict__.get(names, ()):
            if name in found:
                found[name].squared_norm = torch.zeros_like(found[name].squared_norm)
        return found

    patch(Tape, "finish", finished)


def packed_parts_apart(patch: Patch) -> None:
    """Of a packed projection's two uses, the norm has the smaller, the queries', and not keys and values."""
    finish = Tape.finish

    def finished(self: Tape) -> dict[str, Contribution]:
        uses = {name: list(seen) for name, seen in self._seen.items() if name.endswith("in_proj_weight")}
        found = finish(self)
        for name, seen in uses.items():
            if len(seen) > 1:
                found[name].squared_norm = torch.stack([use.kept(self).squared_norm for use in seen]).amin(0)
        return found

    patch(Tape, "finish", finished)


def equal_biases_once(patch: Patch) -> None:
    """b_ih and b_hh of an LSTM have one gradient, which the norm has once and the sum twice."""
    on_norms(patch, lambda name, found: torch.zeros_like(found.squared_norm) if "bias_hh" in name else None)


def last_time_step_unmeasured(patch: Patch) -> None:
    """Norms of a recurrent layer's matrices are over all time steps but the last, whose gradients are largest."""

    def change(tape: Tape, name: str, seen: Any) -> Tensor | None:
        if not isinstance(seen, Tokens) or seen.a.shape[1] < 2 or "layer" not in name:
            return None
        return squared_norms(torch.bmm(seen.g[:, :-1].mT, seen.a[:, :-1]))

    on_entered(patch, change)


def gate_of_another_map(patch: Patch) -> None:
    """A GRU's norm of its input map is taken of the state map's gradients, which its reset gate makes smaller."""
    original = recurrent_module._Layer.enter

    def enter(self: Any, x: Tensor, h: Tensor, of_zi: Tensor, of_zh: Tensor) -> None:
        original(self, x, h, of_zi, of_zh)
        name = self.inputs.weight
        if name in self.tape.contributions:
            rows = self.tape.num_rows
            g, a = (value.reshape(rows, -1, value.shape[-1]) for value in (of_zh, x))
            self.tape.contributions[name].squared_norm = squared_norms(torch.bmm(g.mT, a))
        bias = self.inputs.bias
        if bias in self.tape.contributions:
            self.tape.contributions[bias].squared_norm = squared_norms(
                of_zh.reshape(len(x), -1, of_zh.shape[-1]).sum(1)
            )

    patch(recurrent_module._Layer, "enter", enter)


def state_carried_over(patch: Patch) -> None:
    """A recurrent layer begins where it ended in the batch before: other people's rows are in a unit's gradient."""
    held: dict[tuple[int, ...], Tensor] = {}

    def forward(ctx: Any, x: Tensor, h: Tensor, *rest: Any) -> Tensor:
        before = held.get(tuple(h.shape))
        out = plain(ctx, x, h if before is None else h + before, *rest)
        held[tuple(h.shape)] = out[:, -2].detach().clone()
        return out

    plain = _Unrolled.forward
    patch(_Unrolled, "forward", staticmethod(forward))


def first_group_only(patch: Patch) -> None:
    """The norm of a convolution in groups is that of its first group."""
    original = Convolved.resolve

    def resolve(self: Convolved, tape: Tape) -> Any:
        found = original(self, tape)
        if self.shape.groups > 1:
            found.squared_norm = squared_norms(
                self.looped()[:, : self.kernel.shape[0] // self.shape.groups].contiguous()
            )
        return found

    patch(Convolved, "resolve", resolve)


def kernel_edge_unmeasured(patch: Patch) -> None:
    """The norm of a kernel leaves out its last column, as a band one too narrow does: a third of it."""
    original = Convolved.resolve

    def resolve(self: Convolved, tape: Tape) -> Any:
        found = original(self, tape)
        found.squared_norm = squared_norms(self.looped()[..., :-1].contiguous())
        return found

    patch(Convolved, "resolve", resolve)


def bias_averaged_over_places(patch: Patch) -> None:
    """The norm of a convolution's bias is of the mean over places, the sum of their sum: 1 in 16 or 1 in 36 of it."""
    original = convolution_module.ConvolutionRecord.enter

    def enter(self: Any, x: Tensor, g: Tensor) -> None:
        original(self, x, g)
        if self.bias in self.tape.contributions:
            found = self.tape.contributions[self.bias]
            found.squared_norm = found.squared_norm / g[0, 0].numel() ** 2

    patch(convolution_module.ConvolutionRecord, "enter", enter)


def autocast_not_widened(patch: Patch) -> None:
    """Under autocast norms and sums stay in bfloat16: a unit's part is off by up to 0.4 %, four times the slack."""
    patch(linear_module, "wide", lambda values: values)
    patch(seen_module, "wide", lambda values: values)
    original = seen_module.PerUnit.__post_init__

    def post_init(self: Any) -> None:
        original(self)
        self.squared_norm = self.gradient.reshape(len(self.gradient), -1).square().sum(1).double()

    patch(seen_module.PerUnit, "__post_init__", post_init)


def first_rows_mask(patch: Patch) -> None:
    """Attention masks every row as the first of the batch: that unit's padding is in all the others' gradients."""
    original = attention_module._attention

    def attention(tape: Tape, func: Any, *args: Any, **kwargs: Any) -> Any:
        def of_first(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, **more: Any) -> Tensor:
            mask = None if attn_mask is None else attn_mask[:1].expand_as(attn_mask)
            return func(q, k, v, attn_mask=mask, **more)

        return original(tape, of_first, *args, **kwargs)

    patch(attention_module, "_attention", attention)


LSTM, GRU, GROUPED = own("lstm"), own("gru"), own("grouped")

MUTANTS: dict[str, Mutant] = {
    "packed_bias_unmeasured": (
        "own",
        "a packed projection's bias outside norms",
        packed_bias_unmeasured,
        own("attention"),
    ),
    "packed_parts_apart": ("own", "smaller part of a packed projection in norms", packed_parts_apart, own("attention")),
    "equal_biases_once": ("own", "two equal biases of an LSTM count once", equal_biases_once, LSTM),
    "last_time_step_unmeasured": ("own", "last time step outside norms", last_time_step_unmeasured, LSTM),
    "gate_of_another_map": ("own", "GRU's input map measured by its state map", gate_of_another_map, GRU),
    "state_carried_over": ("3b.22", "recurrent state of the batch before", state_carried_over, LSTM),
    "first_group_only": ("own", "norm of a grouped convolution's first group", first_group_only, GROUPED),
    "kernel_edge_unmeasured": ("own", "kernel's last column outside norms", kernel_edge_unmeasured, GROUPED),
    "bias_averaged_over_places": ("own", "convolution's bias averaged in norms", bias_averaged_over_places, GROUPED),
    "autocast_not_widened": (
        "jax_privacy mixed precision, 3b.25",
        "norms and sums in bfloat16 under autocast",
        autocast_not_widened,
        ("execution.dtype=bfloat16",),
    ),
    "first_rows_mask": ("Opacus 650", "every row masked as the first", first_rows_mask, MASKED),
}
