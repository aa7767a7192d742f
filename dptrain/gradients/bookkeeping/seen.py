"""What one use of a parameter saw in the backward pass, and how it becomes a contribution.

    RowGradients   gradients of rows as they are
    UnitGradients  the same, of units
    Tokens         inputs a_t and output gradients g_t of a linear map
    Lookups        row numbers and output gradients of a table

A parameter that is used once is resolved at once. One that is used several times (tied weights, a module called
twice) has a gradient that is the sum over its uses, and its norm is that of the sum, not a sum of norms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from dptrain.gradients.bookkeeping.choice import Way
from dptrain.gradients.bookkeeping.contribution import (
    Contribution,
    Outer,
    PerUnit,
    Table,
    Tied,
    kept_outer,
)
from dptrain.gradients.bookkeeping.groups import Groups
from dptrain.gradients.bookkeeping.norms import LOOPS, gram_norm

if TYPE_CHECKING:
    from dptrain.gradients.bookkeeping.tape import Tape

MOST_KEPT = 1 << 22
"""Bytes of kept gradients that are tried even where they take more memory than what they are made of."""


class Seen(Protocol):
    """What one use saw."""

    def resolve(self, tape: Tape) -> Contribution:
        """The contribution of this use alone."""
        ...

    def kept(self, tape: Tape) -> PerUnit:
        """The same, held as it is."""
        ...


@dataclass
class RowGradients:
    """A parameter's gradients of rows."""

    gradient: Tensor  # (R, *shape)

    def resolve(self, tape: Tape) -> PerUnit:
        return PerUnit(tape.groups.sum_rows(wide(self.gradient)))

    def kept(self, tape: Tape) -> PerUnit:
        return self.resolve(tape)


@dataclass
class UnitGradients:
    """A parameter's gradients of units, rows of one unit added up already."""

    gradient: Tensor  # (U, *shape)

    def resolve(self, tape: Tape) -> PerUnit:
        return PerUnit(wide(self.gradient).contiguous())

    def kept(self, tape: Tape) -> PerUnit:
        return self.resolve(tape)


@dataclass
class Tokens:
    """A linear map's inputs and output gradients.

    A unit's gradient of the weight is the sum over its tokens of g_t a_t'. With one token its norm is |a| |g|; with
    more, either the two T x T Gram matrices are formed (T^2 (d + p) products), or the gradient itself (T d p products,
    which the sum then need not repeat, and d p numbers a unit to hold). Which is quicker is measured.
    """

    a: Tensor  # (U, T, d)
    g: Tensor  # (U, T, p)
    turned: bool  # the weight is kept as (d, p)

    @classmethod
    def of_rows(cls, groups: Groups, a: Tensor, g: Tensor, turned: bool) -> Tokens:
        """From (R, T, d) and (R, T, p)."""
        return cls(groups.gather(a).flatten(1, 2), groups.gather(g).flatten(1, 2), turned)

    def resolve(self, tape: Tape) -> Contribution:
        key = ("tokens", tuple(self.a.shape[1:]), self.g.shape[2], self.a.dtype, str(self.a.device))
        return tape.chooser.take(key, self._ways(tape), len(self.a), lambda few: self._first(few)._ways(tape))

    def _first(self, units: int) -> Tokens:
        return replace(self, a=self.a[:units], g=self.g[:units])

    def _ways(self, tape: Tape) -> dict[str, Way]:
        tokens, d = self.a.shape[1:]
        p = self.g.shape[2]
        if tokens <= 1:
            return {"product": partial(self.outer, tape, 1)}
        ways: dict[str, Way] = {}
        if tokens * (d + p) <= 8 * d * p:
            ways |= {name: partial(self.outer, tape, blocks) for name, blocks in self.cuts(tape).items()}
        size = len(self.a) * d * p * self.a.element_size()
        slim = size <= max(MOST_KEPT, self.a.nbytes + self.g.nbytes)
        if (d * p <= 8 * tokens * (d + p) and slim) or not ways:
            ways["kept"] = partial(self.kept, tape)
        return ways

    def cuts(self, tape: Tape) -> dict[str, int]:
        """By name, how the symmetric Gram matrices may be computed: in how many blocks, or by loops."""
        ways = {f"gram{blocks}": blocks for blocks in (1, 2, 4) if blocks == 1 or self.a.shape[1] >= 32 * blocks}
        if tape.chooser.compiled and self.a.device.type == "cpu" and self.a.dtype == torch.float32:
            ways["gram_loops"] = LOOPS
        return ways

    def tied(self, tape: Tape, table: Table, blocks: int) -> Tied:
        """Together with look-ups of the same table."""
        return Tied.of(self.outer(tape, blocks), table)

    def outer(self, tape: Tape, blocks: int) -> Outer:
        """Held by its factors, with the norm from Gram matrices."""
        held = tape.gram_of(self.a, blocks) if self.a.shape[1] > 1 else None
        squared, loud = gram_norm(self.a, self.g, blocks, held)
        return Outer(self.a, self.g, squared, loud, self.turned)

    def kept(self, tape: Tape) -> PerUnit:
        return kept_outer(self.a, self.g, self.turned)


@dataclass
class Lookups:
    """A table's rows looked up, and the gradients of what was found there."""

    ids: Tensor  # (U, L) int64
    g: Tensor  # (U, L, d)
    rows: int  # of the table
    padding: int | None  # the row that gets no gradient

    def resolve(self, tape: Tape) -> Table:
        return Table.of_lookups(self.ids, self.g, self.rows, self.padding)

    def kept(self, tape: Tape) -> PerUnit:
        return PerUnit(self.resolve(tape).per_unit())


def combine(tape: Tape, seen: list[Seen]) -> Contribution:
    """The contribution of a parameter's uses together."""
    if len(seen) == 1:
        return seen[0].resolve(tape)
    tokens = [use for use in seen if isinstance(use, Tokens)]
    lookups = [use for use in seen if isinstance(use, Lookups)]
    if len(tokens) + len(lookups) < len(seen) or len({use.turned for use in tokens}) > 1:
        return PerUnit(added_up(tape, seen).contiguous())
    if lookups and len({use.padding for use in lookups}) > 1:
        return PerUnit(added_up(tape, seen).contiguous())
    joined = _join_tokens(tokens) if tokens else None
    if not lookups:
        assert joined is not None
        return joined.resolve(tape)
    table = Lookups(
        torch.cat([use.ids for use in lookups], 1), torch.cat([use.g for use in lookups], 1), *_rows(lookups[0])
    )
    if joined is None:
        return table.resolve(tape)
    if joined.turned:
        return PerUnit(added_up(tape, seen).contiguous())
    found = table.resolve(tape)
    key = ("tied", tuple(joined.a.shape[1:]), joined.g.shape[2], joined.a.dtype, str(joined.a.device))
    return tape.chooser.take(key, {name: partial(joined.tied, tape, found, n) for name, n in joined.cuts(tape).items()})


def _rows(lookups: Lookups) -> tuple[int, int | None]:
    return lookups.rows, lookups.padding


def _join_tokens(tokens: list[Tokens]) -> Tokens:
    if len(tokens) == 1:
        return tokens[0]
    return Tokens(torch.cat([use.a for use in tokens], 1), torch.cat([use.g for use in tokens], 1), tokens[0].turned)


def added_up(tape: Tape, seen: list[Seen]) -> Tensor:
    """(U, *shape): each unit's gradient over all uses."""
    total = seen[0].kept(tape).per_unit()
    for use in seen[1:]:
        total = total + use.kept(tape).per_unit()
    return total


def wide(values: Tensor) -> Tensor:
    """Float32 at least: norms and sums are never taken in fewer bits. Every bfloat16 value is a float32 value."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
