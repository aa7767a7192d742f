"""What one use of one parameter gives to every unit's gradient: its squared norms, and a weighted sum on demand.

Four forms, by how a unit's gradient P_u of the parameter is held:

    PerUnit    P_u itself
    Outer      its factors: P_u = sum over t of g_t a_t', which is what a linear map leaves (Goodfellow 2015; for
               t > 1, with Gram matrices, Li et al. 2022, "Large Language Models Can Be Strong DP Learners", sec. 4)
    Table      rows of a table and what is added to them, which is what an embedding leaves
    Tied       the last two together, where a table is also the matrix of a linear map
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from dptrain.gradients.bookkeeping.norms import (
    ROUNDING,
    doubts,
    loud_units,
    outer_in_float64,
    squared_norms,
)

CANCELLED = 0.01
"""Share of |P|^2 + |Q|^2 that |P + Q|^2 falls under where a table's two gradients cancel."""
MOST_UNITS = 512
"""Units that are added up in float32; the sums of so many are added in float64."""
NARROW = 16
"""Columns under which a matrix product is several times as quick with rows and columns in each other's place."""


class Contribution(Protocol):
    """One parameter's part in the gradients of U units.

    Guarantee: ``squared_norm`` is not below the true squared norm of what ``weighted_sum`` adds for the unit by more
    than 1e-6 of itself; it is infinite or NaN where the unit's gradient is not finite.
    """

    squared_norm: Tensor  # (U,) float64

    def silence(self, dead: Tensor) -> None:
        """Makes units (U,) bool add exactly nothing from now on, whatever they hold."""
        ...

    def weighted_sum(self, factor: Tensor) -> Tensor:
        """(U,) factors -> sum over units of factor_u P_u, in the parameter's shape."""
        ...

    def per_unit(self) -> Tensor:
        """P: (U, *shape)."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory held until the sum is taken."""
        ...


def in_runs(units: int, weighted_sum: Callable[[slice], Tensor]) -> Tensor:
    """The sum over all units, of runs of at most ``MOST_UNITS`` in float32 and of these in float64."""
    if units <= MOST_UNITS:
        return weighted_sum(slice(None))
    total = weighted_sum(slice(0, MOST_UNITS)).double()
    for start in range(MOST_UNITS, units, MOST_UNITS):
        total += weighted_sum(slice(start, start + MOST_UNITS))
    return total


@dataclass
class PerUnit:
    """A unit's gradient, held as it is."""

    gradient: Tensor  # (U, *shape), own memory
    turned: tuple[int, int] | None = None  # dimensions of shape that change places in the parameter's own
    whole: torch.Size | None = None  # the parameter's own shape, where that has more dimensions
    squared_norm: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.squared_norm = squared_norms(self.gradient)

    def replace(self, units: Tensor, precise: Callable[[int], Tensor]) -> None:
        """Puts gradients computed in float64 in the place of those of some units; ``gradient`` must be writable."""
        if not len(units):
            return
        turned = self._turn(self.gradient[0]).shape
        for unit in units.tolist():
            self.gradient[unit] = self._turn(precise(unit).reshape(turned))
        self.squared_norm[units] = squared_norms(self.gradient[units])

    def silence(self, dead: Tensor) -> None:
        self.gradient = self.gradient.masked_fill(_like(dead, self.gradient), 0)

    def weighted_sum(self, factor: Tensor) -> Tensor:
        flat, factor = self.gradient.reshape(len(factor), -1), factor.to(self.gradient.dtype)
        total = in_runs(len(flat), lambda run: torch.mv(flat[run].t(), factor[run]))
        found = self._turn(total.view(self.gradient.shape[1:])).contiguous()
        return found if self.whole is None else found.view(self.whole)

    def per_unit(self) -> Tensor:
        found = self._turn(self.gradient, 1)
        return found if self.whole is None else found.reshape(len(found), *self.whole)

    def _turn(self, values: Tensor, first: int = 0) -> Tensor:
        """Between ``gradient``'s order and the parameter's; ``first`` is where shape begins."""
        return values if self.turned is None else values.transpose(*(first + dim for dim in self.turned))

    @property
    def nbytes(self) -> int:
        return self.gradient.nbytes


@dataclass
class Outer:
    """P_u = sum over t of g_t a_t' (or of a_t g_t' where the weight is stored the other way round)."""

    a: Tensor  # (U, T, d) inputs
    g: Tensor  # (U, T, p) gradients of outputs
    squared_norm: Tensor  # (U,) float64
    loud: Tensor | None = None  # numbers of units that are added apart
    transposed: bool = False  # False: (p, d), as nn.Linear keeps it
    shape: torch.Size | None = None  # the parameter's own shape, where it is not a matrix

    def silence(self, dead: Tensor) -> None:
        self.a = self.a.masked_fill(_like(dead, self.a), 0)
        self.g = self.g.masked_fill(_like(dead, self.g), 0)

    def weighted_sum(self, factor: Tensor) -> Tensor:
        quiet = factor if self.loud is None else factor.index_fill(0, self.loud, 0.0)
        out = in_runs(len(factor), lambda run: self._product(quiet, run))
        if self.loud is not None:
            out = out.double()
            for unit in self.loud.tolist():
                apart = outer_in_float64(self.a[unit], self.g[unit]) * factor[unit]
                out += apart.t() if self.transposed else apart
        return out if self.shape is None else out.view(self.shape)

    def add_to(self, total: Tensor, factor: Tensor) -> bool:
        """Adds the weighted sum to a float32 total in its place, without a second one beside it; False where it cannot
        (units to be added apart, or so many that their sum is wider), and nothing is added."""
        rows, columns = self._sides(factor, slice(None))
        plain = self.loud is None and len(factor) <= MOST_UNITS and total.dtype == rows.dtype == columns.dtype
        if plain:
            total.view(rows.shape[1], columns.shape[1]).addmm_(rows.t(), columns)
        return plain

    def _product(self, factor: Tensor, run: slice) -> Tensor:
        rows, columns = self._sides(factor, run)
        return (columns.t() @ rows).t().contiguous() if is_narrow(rows, columns) else rows.t() @ columns

    def _sides(self, factor: Tensor, run: slice) -> tuple[Tensor, Tensor]:
        """(N, rows), (N, columns): the sum is the transpose of the first times the second."""
        a, g, scale = self.a[run], self.g[run], factor[run, None, None]
        if a.shape[2] < g.shape[2]:
            a = a * scale.to(a.dtype)
        else:
            g = g * scale.to(g.dtype)
        a, g = a.reshape(-1, a.shape[2]), g.reshape(-1, g.shape[2])
        return (a, g) if self.transposed else (g, a)

    def per_unit(self) -> Tensor:
        out = outer_per_unit(self.a, self.g, self.transposed)
        return out if self.shape is None else out.view(len(out), *self.shape)

    def reshaped(self, shape: torch.Size) -> Outer:
        """The same, of a parameter that is a matrix only when flattened."""
        return replace(self, shape=shape)

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + self.g.nbytes


@dataclass
class Table:
    """Rows of a table, each with what one unit adds to it; a unit's repeated look-ups are already added up."""

    sums: Tensor  # (K, d)
    unit: Tensor  # (K,) int64 in 0..U-1
    row: Tensor  # (K,) int64
    rows: int  # of the table
    squared_norm: Tensor  # (U,) float64

    @classmethod
    def of_lookups(cls, ids: Tensor, g: Tensor, rows: int, padding: int | None) -> Table:
        """From (U, L) row numbers and (U, L, d) gradients; look-ups of ``padding`` add nothing."""
        units, lookups = ids.shape
        keys = (ids + torch.arange(units, device=ids.device)[:, None] * rows).flatten()
        found, inverse = torch.unique(keys, return_inverse=True)
        values = g.reshape(units * lookups, -1)
        sums = values.new_zeros((len(found), values.shape[1])).index_add_(0, inverse, values)
        unit, row = found // rows, found % rows
        if padding is not None:
            sums = sums.masked_fill_((row == padding)[:, None], 0)
        squared = torch.zeros(units, dtype=torch.float64, device=g.device).index_add_(0, unit, squared_norms(sums))
        return cls(sums, unit, row, rows, squared)

    def silence(self, dead: Tensor) -> None:
        self.sums = self.sums.masked_fill(dead[self.unit][:, None], 0)

    def weighted_sum(self, factor: Tensor) -> Tensor:
        dtype = self.sums.dtype if len(factor) <= MOST_UNITS else torch.float64
        return self.add_to(self.sums.new_zeros((self.rows, self.sums.shape[1]), dtype=dtype), factor)

    def add_to(self, table: Tensor, factor: Tensor) -> Tensor:
        """Adds the weighted sum to ``table`` (rows, d) in place."""
        scale = factor.to(self.sums.dtype)[self.unit][:, None]
        return table.index_add_(0, self.row, (self.sums * scale).to(table.dtype))

    def per_unit(self) -> Tensor:
        units = len(self.squared_norm)
        whole = self.sums.new_zeros((units * self.rows, self.sums.shape[1]))
        return whole.index_copy_(0, self.unit * self.rows + self.row, self.sums).unflatten(0, (units, self.rows))

    @property
    def nbytes(self) -> int:
        return self.sums.nbytes


@dataclass
class Tied:
    """A table that is also the matrix of a linear map: |P + Q|^2 = |P|^2 + |Q|^2 + 2 <P, Q>."""

    outer: Outer
    table: Table
    squared_norm: Tensor  # (U,) float64
    loud: Tensor | None = None  # numbers of units that are added apart: those whose two gradients cancel

    @classmethod
    def of(cls, outer: Outer, table: Table) -> Tied:
        """The inner product of sum_t g_t a_t' with a table whose row r holds s_r is sum_r s_r . (sum_t g_t[r] a_t)."""
        units, tokens = outer.g.shape[:2]
        counts = torch.bincount(table.unit, minlength=units)
        first = torch.cumsum(counts, 0) - counts
        width = int(counts.max()) if len(counts) else 0
        place = torch.arange(len(table.unit), device=counts.device) - first[table.unit]
        columns = torch.zeros((units, width), dtype=torch.int64, device=counts.device)
        columns[table.unit, place] = table.row
        sums = table.sums.new_zeros((units, width, table.sums.shape[1]))
        sums[table.unit, place] = table.sums
        picked = outer.g.gather(2, columns[:, None, :].expand(units, tokens, width))  # (U, T, K)
        met = torch.bmm(picked.transpose(1, 2), outer.a)  # (U, K, d)
        cross = (met * sums).sum(2).double().sum(1)
        apart = outer.squared_norm + table.squared_norm
        both = (apart + 2.0 * cross).clamp(min=0.0)
        if outer.a.is_cuda:
            return cls(outer, table, both + ROUNDING * apart)
        cancelled = both < CANCELLED * apart
        if outer.loud is not None:
            cancelled[outer.loud] = True
        loud = torch.nonzero(cancelled).flatten()
        tied = cls(outer, table, both, loud if len(loud) else None)
        for unit in loud.tolist():
            both[unit] = tied.in_float64(unit).square().sum()
        return tied

    def in_float64(self, unit: int) -> Tensor:
        """One unit's gradient (rows, d) float64."""
        own = self.table.unit == unit
        whole = outer_in_float64(self.outer.a[unit], self.outer.g[unit])
        return whole.index_add_(0, self.table.row[own], self.table.sums[own].double())

    def silence(self, dead: Tensor) -> None:
        self.outer.silence(dead)
        self.table.silence(dead)

    def weighted_sum(self, factor: Tensor) -> Tensor:
        quiet = factor if self.loud is None else factor.index_fill(0, self.loud, 0.0)
        total = self.table.add_to(self.outer.weighted_sum(quiet), quiet)
        if self.loud is not None:
            total = total.double()
            for unit in self.loud.tolist():
                total += self.in_float64(unit) * factor[unit]
        return total

    def per_unit(self) -> Tensor:
        return self.outer.per_unit() + self.table.per_unit()

    @property
    def nbytes(self) -> int:
        return self.outer.nbytes + self.table.nbytes


def is_narrow(rows: Tensor, columns: Tensor) -> bool:
    """Whether the product (..., p)' (..., d) of this shape is quicker the other way round, and turned."""
    return columns.shape[-1] < min(NARROW, rows.shape[-1])


def outer_per_unit(a: Tensor, g: Tensor, transposed: bool = False) -> Tensor:
    """(U, T, d), (U, T, p) -> (U, p, d), or (U, d, p) transposed."""
    return torch.bmm(a.transpose(1, 2), g) if transposed else torch.bmm(g.transpose(1, 2), a)


def kept_outer(a: Tensor, g: Tensor, transposed: bool) -> PerUnit:
    """The same gradients held as they are, with the norms that ``gram_norm`` gives."""
    narrow = is_narrow(a, g) if transposed else is_narrow(g, a)
    unit = PerUnit(outer_per_unit(a, g, transposed != narrow), (0, 1) if narrow else None)
    norms_a, norms_g = (torch.linalg.vector_norm(value, dim=2).double() for value in (a, g))
    if a.is_cuda:
        rounding, hidden = doubts(norms_a, norms_g, a.shape[2], g.shape[2])
        unit.squared_norm += rounding + hidden
        return unit

    def precise(number: int) -> Tensor:
        found = outer_in_float64(a[number], g[number])
        return found.t() if transposed else found

    unit.replace(loud_units((norms_a * norms_g).sum(1), unit.squared_norm, a.shape[1]), precise)
    return unit


def _like(dead: Tensor, values: Tensor) -> Tensor:
    return dead.view(-1, *[1] * (values.dim() - 1))
