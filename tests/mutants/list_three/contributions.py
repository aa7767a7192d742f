"""Mistakes in how units' parts are held, measured and summed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import dptrain.gradients.bookkeeping.contribution as contribution_module
import dptrain.gradients.bookkeeping.norms as norms_module
import dptrain.gradients.bookkeeping.seen as seen_module
import dptrain.gradients.bookkeeping.tape as tape_module
from dptrain.gradients.bookkeeping.contribution import Contribution, Outer, PerUnit, Table, Tied, outer_in_float64
from dptrain.gradients.bookkeeping.groups import Groups
from dptrain.gradients.bookkeeping.seen import RowGradients, Seen, Tokens, added_up
from dptrain.gradients.bookkeeping.tape import Tape

from .needed import MASKED, TIED, USERS, own
from .shared import Mutant, Patch, on_entered

MANY = ("execution.physical_batch_size=700", "privacy.expected_batch_size=640")


def run_factors_stale(patch: Patch) -> None:
    """Beyond 512 units, the second run of units is multiplied by the factors of the first: no bound for its units."""
    original = Outer._product

    def product(self: Outer, factor: Tensor, run: slice) -> Tensor:
        stale = factor.roll(contribution_module.MOST_UNITS) if run.start else factor
        return original(self, torch.where(factor > 0, stale, factor), run)

    patch(Outer, "_product", product)


def _always_held(patch: Patch, way: Callable[[Tokens, Tape], Contribution]) -> None:
    """Lets linear maps of several tokens know one way only."""
    original = Tokens._ways

    def ways(self: Tokens, tape: Tape) -> Any:
        return original(self, tape) if self.a.shape[1] <= 1 else {"one": lambda: way(self, tape)}

    patch(Tokens, "_ways", ways)


def loud_added_twice(patch: Patch) -> None:
    """A unit whose terms cancel is added apart, in float64, and stays among the others as well: 2 C."""

    def weighted_sum(self: Outer, factor: Tensor) -> Tensor:
        out = contribution_module.in_runs(len(factor), lambda run: self._product(factor, run))
        if self.loud is not None:
            out = out.double()
            for unit in self.loud.tolist():
                apart = outer_in_float64(self.a[unit], self.g[unit]) * factor[unit]
                out += apart.t() if self.transposed else apart
        return out if self.shape is None else out.view(self.shape)

    patch(Outer, "weighted_sum", weighted_sum)
    _always_held(patch, lambda tokens, tape: tokens.outer(tape, 1))


def loud_counted_by_place(patch: Patch) -> None:
    """What is added apart is the unit of that place in the list, with the factor of the unit that was meant."""

    def weighted_sum(self: Outer, factor: Tensor) -> Tensor:
        quiet = factor if self.loud is None else factor.index_fill(0, self.loud, 0.0)
        out = contribution_module.in_runs(len(factor), lambda run: self._product(quiet, run))
        if self.loud is not None:
            out = out.double()
            for place, unit in enumerate(self.loud.tolist()):
                other = (place + 1) % len(factor)
                apart = outer_in_float64(self.a[other], self.g[other]) * factor[unit]
                out += apart.t() if self.transposed else apart
        return out if self.shape is None else out.view(self.shape)

    patch(Outer, "weighted_sum", weighted_sum)
    _always_held(patch, lambda tokens, tape: tokens.outer(tape, 1))


def loud_without_factor(patch: Patch) -> None:
    """The float64 path leaves the factor out: a unit whose terms cancel is not clipped."""

    def weighted_sum(self: Outer, factor: Tensor) -> Tensor:
        quiet = factor if self.loud is None else factor.index_fill(0, self.loud, 0.0)
        out = contribution_module.in_runs(len(factor), lambda run: self._product(quiet, run))
        for unit in [] if self.loud is None else self.loud.tolist():
            if float(factor[unit]) > 0:
                apart = outer_in_float64(self.a[unit], self.g[unit])
                out = out.double() + (apart.t() if self.transposed else apart)
        return out if self.shape is None else out.view(self.shape)

    patch(Outer, "weighted_sum", weighted_sum)
    _always_held(patch, lambda tokens, tape: tokens.outer(tape, 1))


def cancelling_norm_kept(patch: Patch) -> None:
    """Gram norms that cancel are not computed again: float32 loses them, and a unit's part is up to several C."""
    original = norms_module._cancels
    patch(norms_module, "_cancels", lambda size, squared, most: original(size, squared, 1e12))
    _always_held(patch, lambda tokens, tape: tokens.outer(tape, 1))


def gram_corner_once(patch: Patch) -> None:
    """Of a Gram product in blocks, what lies above the diagonal counts once, not twice: norms up to a sixth low."""
    original = norms_module.gram_norm

    def gram_norm(a: Tensor, g: Tensor, blocks: int = 1, held: Any = None) -> tuple[Tensor, Tensor | None]:
        whole, loud = original(a, g, blocks, held)
        length = a.shape[1]
        if blocks == 1 or length == 1:
            return whole, loud
        step = -(-length // blocks)
        apart = torch.zeros_like(whole)
        for start in range(0, length, step):
            part = slice(start, start + step)
            own_a, own_g = torch.bmm(a[:, part], a[:, part].mT), torch.bmm(g[:, part], g[:, part].mT)
            apart += (own_a * own_g).sum((1, 2)).double()
        return ((whole + apart) / 2.0).clamp(min=0.0), loud

    patch(seen_module, "gram_norm", gram_norm)
    _always_held(patch, lambda tokens, tape: tokens.outer(tape, 2))


def gram_of_another_input(patch: Patch) -> None:
    """Gram matrices are kept by the shape of an input, not by the input: a layer's norm is of another's inputs."""

    def gram_of(self: Tape, a: Tensor, blocks: int) -> dict[int, Tensor]:
        if self.timing:
            return {}
        return self.grams.setdefault((a.shape, blocks), (a, {}))[1]

    patch(Tape, "gram_of", gram_of)
    _always_held(patch, lambda tokens, tape: tokens.outer(tape, 1))


def norm_without_left_over(patch: Patch) -> None:
    """Norms are added in runs of 64 columns, and the columns behind the last whole run are forgotten."""
    original = contribution_module.squared_norms

    def squared_norms(values: Tensor) -> Tensor:
        flat = values.reshape(len(values), -1)
        whole = flat.shape[1] // 64 * 64
        return original(flat[:, :whole] if whole else flat)

    patch(contribution_module, "squared_norms", squared_norms)
    patch(norms_module, "squared_norms", squared_norms)


def rows_squared_apart(patch: Patch) -> None:
    """A unit's squared norm of a bias is the sum over its rows, without what they have in common: up to sqrt(k)."""
    original = RowGradients.resolve

    def resolve(self: RowGradients, tape: Tape) -> PerUnit:
        found = original(self, tape)
        each = contribution_module.squared_norms(seen_module.wide(self.gradient))
        found.squared_norm = tape.groups.sum_rows(each)
        return found

    patch(RowGradients, "resolve", resolve)


def empty_places_filled(patch: Patch) -> None:
    """Places that no row of a unit fills hold row 0 of the batch: one unit's row is in the gradients of many."""

    def gather(self: Groups, values: Tensor) -> Tensor:
        if self.is_view:
            return values[: self.num_rows].unflatten(0, (self.num_units, self.rows_per_unit))
        return values[self._place.clamp(min=0)]

    patch(Groups, "gather", gather)


def rows_of_next_unit(patch: Patch) -> None:
    """In a batch of units with several rows, a unit's last row is given to the unit behind it: it moves two slots."""
    original = Groups.__init__

    def init(self: Groups, unit: Tensor, weight: Tensor) -> None:
        owners, alive = unit.clone(), weight != 0
        live = owners[alive]
        ends = torch.cat([live[1:] != live[:-1], torch.ones(min(1, len(live)), dtype=torch.bool)])
        several = torch.bincount(live, minlength=len(unit))[live] > 1
        moved = torch.where(ends & several, (live + 1).clamp(max=int(live.max()) if len(live) else 0), live)
        owners[alive] = moved
        original(self, owners, weight)

    patch(Groups, "__init__", init)


def tied_cross_once(patch: Patch) -> None:
    """|P + Q|^2 of a tied table is taken as |P|^2 + |Q|^2 + <P, Q>."""
    original = Tied.of

    def of(cls: type[Tied], outer: Any, table: Table) -> Tied:
        found = original(outer, table)
        found.squared_norm = 0.5 * (found.squared_norm + outer.squared_norm + table.squared_norm)
        return found

    patch(Tied, "of", classmethod(of))


def uses_measured_apart(patch: Patch) -> None:
    """A map that is called twice has the root of both squared norms, not the norm of the sum: up to sqrt(2) C."""
    original = tape_module.combine

    def combine(tape: Tape, seen: list[Seen]) -> Contribution:
        found = original(tape, seen)
        if len(seen) > 1:
            found.squared_norm = torch.stack([use.kept(tape).squared_norm for use in seen]).sum(0)
        return found

    patch(tape_module, "combine", combine)


def derived_measured_before(patch: Patch) -> None:
    """The norm for W in 3 W is that of the gradient of 3 W: a third of what is added, so up to 3 C."""
    original = Tape._pulled_back
    held: dict[str, Tensor] = {}

    def pulled_back(self: Tape, value: str) -> Any:
        seen = self._seen.get(value, [])
        squared = contribution_module.squared_norms(added_up(self, seen)) if seen else None
        for name, gradient in original(self, value):
            if squared is not None:
                held[name] = squared
            yield name, gradient

    finish = Tape.finish

    def finished(self: Tape) -> dict[str, Contribution]:
        held.clear()
        found = finish(self)
        for name, squared in held.items():
            found[name].squared_norm = squared
        return found

    patch(Tape, "_pulled_back", pulled_back)
    patch(Tape, "finish", finished)


def table_norm_of_last(patch: Patch) -> None:
    """The norm of an embedding's part is that of its last look-up, as an index put does without accumulation."""

    def change(tape: Tape, name: str, seen: Any) -> Tensor | None:
        if not isinstance(seen, seen_module.Lookups):
            return None
        ids = seen.ids
        later = (ids[:, :, None] == ids[:, None, :]) & torch.ones(ids.shape[1], ids.shape[1]).triu(1).bool()
        each = seen.g.double().square().sum(2)
        return each.masked_fill(later.any(2), 0.0).sum(1)

    on_entered(patch, change)


DIFFERENCE = own("difference")
PIXELS = (*own("pixels"), "privacy.expected_batch_size=100")

MUTANTS: dict[str, Mutant] = {
    "run_factors_stale": ("own", "beyond 512 units, factors of the run before", run_factors_stale, MANY),
    "loud_added_twice": ("own", "a cancelling unit is added twice", loud_added_twice, DIFFERENCE),
    "loud_counted_by_place": (
        "own",
        "another unit in the place of a cancelling one",
        loud_counted_by_place,
        DIFFERENCE,
    ),
    "loud_without_factor": (
        "own",
        "a cancelling unit is added without its factor",
        loud_without_factor,
        (*DIFFERENCE, "privacy.noise=fast"),
    ),
    "cancelling_norm_kept": (
        "Li et al. 2022",
        "cancelling Gram norms stay in float32",
        cancelling_norm_kept,
        DIFFERENCE,
    ),
    "gram_corner_once": ("own", "Gram products above the diagonal count once", gram_corner_once, PIXELS),
    "gram_of_another_input": ("own", "kept Gram matrix of another layer's input", gram_of_another_input, PIXELS),
    "norm_without_left_over": (
        "own",
        "norms leave out columns behind the last 64",
        norm_without_left_over,
        ("model.options.hidden=[100]",),
    ),
    "rows_squared_apart": ("own", "norms of biases summed row by row of a user", rows_squared_apart, USERS),
    "empty_places_filled": ("own", "empty places of users hold the batch's first row", empty_places_filled, USERS),
    "rows_of_next_unit": ("own", "a user's last row goes to the next user", rows_of_next_unit, USERS),
    "tied_cross_once": ("Li et al. 2022", "tied table's cross term counts once", tied_cross_once, TIED),
    "uses_measured_apart": ("3b.21", "a map called twice has its uses' norms apart", uses_measured_apart, own("twice")),
    "derived_measured_before": (
        "own",
        "norm of a scaled weight, not of the parameter",
        derived_measured_before,
        own("scaled"),
    ),
    "table_norm_of_last": ("own", "a repeated token counts once, by its last look-up", table_norm_of_last, MASKED),
}
