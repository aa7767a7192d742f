"""Mistakes in the norms of layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

import dptrain.gradients.bookkeeping.normalisation as normalisation_module
from dptrain.gradients.bookkeeping.contribution import Table, Tied, squared_norms
from dptrain.gradients.bookkeeping.convolution import Convolved
from dptrain.gradients.bookkeeping.engine import BookkeepingEngine
from dptrain.gradients.bookkeeping.groups import Groups
from dptrain.gradients.bookkeeping.seen import Tokens

from .needed import TIED, TOKENS
from .shared import Mutant, Patch


def _norm_without(patch: Patch, left_out: Callable[[str, Any], bool]) -> None:
    original = BookkeepingEngine._clip

    def clip(self: Any, contributions: Any, groups: Groups, size: int) -> tuple[Tensor, Tensor]:
        some = {name: c for name, c in contributions.items() if not left_out(name, c)}
        return original(self, some, groups, size)

    patch(BookkeepingEngine, "_clip", clip)


def norm_without_biases(patch: Patch) -> None:
    """Biases are left out of norms, not of sums."""
    _norm_without(patch, lambda name, contribution: name.endswith("bias"))


def norm_without_tables(patch: Patch) -> None:
    """Embedding tables are left out of norms, not of sums."""
    _norm_without(patch, lambda name, contribution: isinstance(contribution, Table))


def tied_without_cross(patch: Patch) -> None:
    """|P + Q|^2 of a tied table is taken as |P|^2 + |Q|^2."""
    original = Tied.of

    def of(cls: type[Tied], outer: Any, table: Table) -> Tied:
        found = original(outer, table)
        found.squared_norm = outer.squared_norm + table.squared_norm
        return found

    patch(Tied, "of", classmethod(of))


def repeated_lookups(patch: Patch) -> None:
    """A token that a row holds twice counts in the norm as two tokens."""
    original = Table.of_lookups

    def of_lookups(cls: type[Table], ids: Tensor, g: Tensor, rows: int, padding: int | None) -> Table:
        found = original(ids, g, rows, padding)
        each = squared_norms(g.reshape(ids.numel(), -1)).view(ids.shape)
        found.squared_norm = each.masked_fill(ids == (-1 if padding is None else padding), 0.0).sum(1)
        return found

    patch(Table, "of_lookups", classmethod(of_lookups))


def padding_outside_norm(patch: Patch) -> None:
    """The padding token's gradient is left out of norms, but not of sums."""
    original = Table.of_lookups

    def of_lookups(cls: type[Table], ids: Tensor, g: Tensor, rows: int, padding: int | None) -> Table:
        found = original(ids, g, rows, None)
        found.squared_norm = original(ids, g, rows, padding).squared_norm
        return found

    patch(Table, "of_lookups", classmethod(of_lookups))


def gram_diagonal(patch: Patch) -> None:
    """The norm of a linear map over several tokens is summed token by token, without what tokens have in common."""

    def diagonal(way: Callable[..., Any]) -> Callable[..., Any]:
        def taken(self: Tokens, *args: Any) -> Any:
            found = way(self, *args)
            found.squared_norm = (self.a.double().square().sum(2) * self.g.double().square().sum(2)).sum(1)
            return found

        return taken

    patch(Tokens, "outer", diagonal(Tokens.outer))
    patch(Tokens, "kept", diagonal(Tokens.kept))


def convolution_norm(patch: Patch) -> None:
    """The squared norm of a convolution's kernel is 20 % too small."""
    original = Convolved.resolve

    def resolve(self: Convolved, tape: Any) -> Any:
        found = original(self, tape)
        found.squared_norm = found.squared_norm * 0.8
        return found

    patch(Convolved, "resolve", resolve)


def layer_norm_rows_meet(patch: Patch) -> None:
    """A row's gradient of a layer norm's scale holds a tenth of its neighbour's."""
    original = normalisation_module._layer_norm_rows

    def rows(*args: Any) -> tuple[Tensor | None, Tensor | None]:
        scale, shift = original(*args)
        return None if scale is None else scale + 0.1 * scale.roll(1, 0), shift

    patch(normalisation_module, "_layer_norm_rows", rows)


def last_bias_scaled(patch: Patch) -> None:
    """The last bias learns twice as fast: its clipped sum is doubled before the noise."""
    original = BookkeepingEngine.clipped_parts

    def sums(self: Any, batch: Any) -> Any:
        parts, stats = original(self, batch)
        if len(parts) > 1:
            parts[-1] = parts[-1] * 2.0
        return parts, stats

    patch(BookkeepingEngine, "clipped_parts", sums)


MUTANTS: dict[str, Mutant] = {
    "norm_without_biases": ("own", "biases in sums, not in norms", norm_without_biases, ()),
    "norm_without_tables": ("own", "embeddings in sums, not in norms", norm_without_tables, TOKENS),
    "tied_without_cross": ("Li et al. 2022", "tied table's norm without its cross term", tied_without_cross, TIED),
    "repeated_lookups": ("Li et al. 2022", "a token met twice counts as two in the norm", repeated_lookups, TOKENS),
    "padding_outside_norm": ("own", "padding token's gradient in sums, not in norms", padding_outside_norm, TOKENS),
    "gram_diagonal": ("Goodfellow 2015", "norm of a linear map summed token by token", gram_diagonal, TOKENS),
    "convolution_norm": (
        "own",
        "kernel's squared norm 20 % low",
        convolution_norm,
        (
            "model=own",
            "model.name=list_two_conv",
        ),
    ),
    "layer_norm_rows_meet": (
        "own",
        "a tenth of the neighbour's gradient in layer norm's scale",
        layer_norm_rows_meet,
        (
            "model=own",
            "model.name=list_two_norm",
        ),
    ),
    "last_bias_scaled": ("own", "last bias's sum doubled after clipping", last_bias_scaled, ()),
}
