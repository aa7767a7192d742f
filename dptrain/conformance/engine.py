"""Conformance of an engine by itself: norms, sums, neighbours, bad rows, layouts, and an untouched model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from dptrain.conformance.reference import UNCLIPPED, added, exact, gradients, only
from dptrain.conformance.stand import Result, Stand
from dptrain.data.batches import PhysicalBatch, UnitIndex, physical_batches
from dptrain.gradients.draw_sum import DrawSum
from dptrain.gradients.protocol import trainable
from dptrain.privacy.grid import grid_step

HAZARDS = (1e30, float("inf"), float("nan"))
"""What the numbers of a bad unit are multiplied by, or become."""
THOUSAND, MOST_VALUES = 1024, 1 << 25
"""Rows of a large batch where the run's own are fewer; gradient values of all of its rows together, at most."""
WARM_UPS = 4
"""Passes after which an engine has chosen how it computes."""


def norms(stand: Stand) -> Result:
    """No norm below the true one, nor below that of the values that the engine adds for the unit."""
    batch, units = stand.all_rows(), torch.arange(stand.rows.num_units)
    found = exact(stand, batch, units, stand.clip)
    told = added(stand.engine(stand.clip), batch, stand.count)[1].norms[: len(units)].cpu()
    worst = float(((found.norms - told) / found.norms.clamp(min=1e-300))[found.norms > 0].max())
    zeros = float(told[found.norms == 0].max()) if bool((found.norms == 0).any()) else 0.0
    engine, own = stand.engine(UNCLIPPED), 0.0
    for unit in units.tolist():
        total, stats = added(engine, only(batch, [unit]), stand.count)
        length = float(total.norm())
        own = max(own, (length - float(stats.norms.max())) / length) if length > 0 else own
    good = worst <= stand.norm_tolerance and zeros <= stand.norm_tolerance and bool(told.isfinite().all())
    says = f"an engine's norm is at most {worst:.1e} below the true one (tolerance {stand.norm_tolerance:.0e}), "
    says += f"{own:.1e} below that of what it adds (tolerance {stand.own_tolerance:.0e})"
    return Result("norms", good and own <= stand.own_tolerance, says)


def clipped_sums(stand: Stand) -> Iterator[Result]:
    """The sum of all units: under the plan's C, where all are clipped, where the longest is, and where none is."""
    batch, units = stand.all_rows(), torch.arange(stand.rows.num_units)
    free = exact(stand, batch, units, math.inf).norms
    largest, smallest = float(free.max()), float(free[free > 1e-6 * free.max()].min())
    above_mean = (float(free[free.isfinite()].mean()) + largest) / 2
    norms = {"": stand.clip, ", all clipped": smallest / 4, ", few clipped": above_mean, ", none clipped": largest * 4}
    for name, clip in ((f"sum{which}", clip) for which, clip in norms.items()):
        wanted = exact(stand, batch, units, clip).clipped_sum
        total = added(stand.engine(clip), batch, stand.count)[0]
        error = float((total - wanted).norm()) / clip / len(units)
        says = f"off by {error:.1e} C a unit from {stand.compared_with} (tolerance {stand.unit_tolerance:.0e})"
        yield Result(name, error <= stand.unit_tolerance, says)


def contributions(stand: Stand) -> Result:
    """Each unit alone adds at most C (1 + s), on the grid too, and in the direction of its own gradient."""
    batch, largest, worst = stand.all_rows(), 0.0, 0.0
    engine, grid = stand.engine(stand.clip), grid_step(stand.clip, stand.slack, stand.count)
    rounded = stand.engine(stand.clip, grid)
    for unit, gradient in enumerate(gradients(stand, batch, torch.arange(stand.rows.num_units))):
        alone = only(batch, [unit])
        total = added(engine, alone, stand.count)[0]
        on_grid = added(rounded, alone, stand.count)[0] * grid
        largest = max(largest, float(total.norm()) / stand.clip, float(on_grid.norm()) / stand.clip)
        norm = float(gradient.norm())
        clipped = gradient * min(1.0, stand.clip / norm) if norm > 0 else gradient
        worst = max(worst, float((total - clipped).norm()) / stand.clip)
    good = largest <= 1.0 + stand.slack and worst <= stand.unit_tolerance
    says = f"a unit adds at most {largest:.6f} C (limit {1.0 + stand.slack:g}), off by {worst:.1e} C"
    return Result("contributions", good, f"{says} (tolerance {stand.unit_tolerance:.0e})")


def neighbours(stand: Stand) -> Result:
    """Leaving one unit out moves the sum by exactly what that unit adds alone, and by at most C (1 + s)."""
    batch, engine = stand.all_rows(), stand.engine(stand.clip)
    every = list(range(stand.rows.num_units))
    whole = added(engine, batch, stand.count)[0]
    largest = worst = 0.0
    for unit in every[: max(8, len(every) // 3)]:
        rest = added(engine, only(batch, [u for u in every if u != unit]), stand.count)[0]
        alone = added(engine, only(batch, [unit]), stand.count)[0]
        largest = max(largest, float((whole - rest).norm()) / stand.clip)
        worst = max(worst, float((whole - rest - alone).norm()) / stand.clip)
    good = largest <= 1.0 + stand.slack and worst <= stand.slack / 10
    says = f"one unit moves the sum by at most {largest:.6f} C (limit {1.0 + stand.slack:g}), the others' part by"
    return Result("neighbours", good, f"{says} {worst:.1e} C (tolerance {stand.slack / 10:.0e})")


def bad_rows(stand: Stand) -> Result:
    """A unit of huge, infinite or undefined numbers: bounded, or nothing, and no other unit moves."""
    if not stand.is_real:
        return Result("bad rows", None, "rows are tokens, which cannot be huge or undefined")
    engine, every = stand.engine(stand.clip), list(range(stand.rows.num_units))
    rest = added(engine, only(stand.all_rows(), every[:5] + every[6:]), stand.count)[0]
    largest = moved = 0.0
    mine = stand.rows.unit_id == 5
    for factor in HAZARDS:
        inputs = stand.rows.inputs.clone()
        inputs[mine] = inputs[mine] * factor if math.isfinite(factor) else factor
        batch = stand.all_rows(replace(stand.rows, inputs=inputs))
        alone = added(engine, only(batch, [5]), stand.count)[0]
        whole = added(engine, batch, stand.count)[0]
        largest = max(largest, _size(alone) / stand.clip)
        moved = max(moved, _size(whole - rest - alone) / stand.clip)
    good = largest <= 1.0 + stand.slack and moved <= stand.slack / 10
    says = f"such a unit adds at most {largest:.4f} C (limit {1.0 + stand.slack:g}) and moves the others' part by"
    return Result("bad rows", good, f"{says} {moved:.1e} C (tolerance {stand.slack / 10:.0e})")


def layouts(stand: Stand) -> Result:
    """The same draw in other physical batches, in other order, with padding of any content: the same sum."""
    rows, index, engine = stand.rows, UnitIndex(stand.rows.unit_id), stand.engine(stand.clip)
    parameters, everyone = list(trainable(stand.module).values()), torch.arange(stand.rows.num_units)

    def total(size: int, draw: Tensor, change: Callable[[PhysicalBatch], PhysicalBatch] = lambda b: b) -> Tensor:
        summed = DrawSum(parameters, on_grid=False)
        summed.clear()
        for batch in physical_batches(draw, rows, index, size, stand.device):
            summed.add(engine, change(batch))
        return summed.flat().clone()

    whole = total(len(rows) + 3, everyone)
    others = {
        f"batches of {index.largest_unit}": total(index.largest_unit, everyone),
        "batches of 8": total(8, everyone),
        "another order": total(8, everyone.flip(0)),
        "padding": total(8, everyone, _filled),
        "reference": exact(stand, stand.all_rows(), everyone, stand.clip).clipped_sum,
    }
    errors = {name: _size(other - whole) / stand.clip / len(everyone) for name, other in others.items()}
    worst = max(errors, key=lambda name: errors[name] if math.isfinite(errors[name]) else math.inf)
    says = f"{worst} differs most: {errors[worst]:.1e} C a unit (tolerance {stand.unit_tolerance:.0e})"
    return Result("layouts", all(e <= stand.unit_tolerance for e in errors.values()), says)


def large_batch(stand: Stand) -> Result:
    """Copies of all units in one batch of the run's size, or of a thousand rows: as many times the sum of one copy.

    What is worked on in pieces, or from some size on in another way, shows here. One unit lost or added twice does.
    """
    single, size = stand.all_rows(), stand.config.execution.physical_batch_size
    rows, units = len(single.unit), stand.rows.num_units
    copies = math.ceil(max(size, min(THOUSAND, MOST_VALUES // stand.count)) / rows)
    inputs = single.inputs.repeat(copies, *[1] * (single.inputs.ndim - 1))
    slots = (single.unit + units * torch.arange(copies, device=stand.device)[:, None]).flatten()
    targets = single.targets.repeat(copies, *[1] * (single.targets.ndim - 1))
    many = PhysicalBatch(inputs, targets, slots, single.weight.repeat(copies))
    engine = stand.engine(stand.clip)
    one, whole = added(engine, single, stand.count)[0], added(engine, many, stand.count)[0]
    error = _size(whole - copies * one) / stand.clip / (copies * units)
    allowed = min(stand.unit_tolerance, 0.25 / (copies * units))
    says = f"{copies * rows} rows at once are off by {error:.1e} C a unit from {copies} times {rows} rows"
    return Result("large batch", error <= allowed, f"{says} (tolerance {allowed:.0e})")


def model_left_alone(stand: Stand) -> Result:
    """Buffers, parameters, gradients and mode as they were; and the same sum twice."""
    module, engine, batch = stand.module, stand.engine(stand.clip), stand.all_rows()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    modes = [m.training for m in module.modules()]
    for _ in range(WARM_UPS):
        added(engine, batch, stand.count)
    first, again = (added(engine, batch, stand.count)[0] for _ in range(2))
    differ = _size(first - again) / stand.clip
    changed = [name for name, t in module.state_dict().items() if not torch.equal(before[name], t)]
    changed += [name for name, p in module.named_parameters() if p.grad is not None]
    changed += ["mode"] if modes != [m.training for m in module.modules()] else []
    says = f"changed: {', '.join(changed) or 'nothing'}; the same sum twice differs by {differ:.1e} C (limit 1e-9)"
    return Result("model left alone", not changed and differ <= 1e-9, says)


def on_grid(stand: Stand) -> Result:
    """An ``exact`` engine's contributions are whole grid steps, each rounded to the nearest."""
    engine = stand.engine(stand.clip, grid := grid_step(stand.clip, stand.slack, stand.count))
    if engine.float_class != "exact":
        return Result("grid", None, f"engine {engine.name} is of the class 'measured': its sum is rounded at release")
    free, every = stand.engine(stand.clip), list(range(stand.rows.num_units))
    off = bias = 0.0
    for unit in every[5:13]:
        alone = only(stand.all_rows(), [unit])
        total, wide = (added(e, alone, stand.count)[0] for e in (engine, free))
        if bool((total != total.round()).any()):
            return Result("grid", False, "a contribution is not a whole number of grid steps")
        gap = total - wide / grid
        off, bias = max(off, float(gap.abs().max())), max(bias, abs(float(gap.mean())) * math.sqrt(stand.count))
    limit = 6.5 / math.sqrt(12.0)  # six and a half deviations of a mean of uniform rounding errors
    says = f"off by at most {off:.3f} steps (limit 0.5), biased by {bias:.2f} (limit {limit:.2f}, false alarms 1e-9)"
    return Result("grid", off <= 0.5 + 1e-3 and bias <= limit, says)


def _filled(batch: PhysicalBatch) -> PhysicalBatch:
    """Padding rows full of numbers that would show."""
    empty = batch.weight == 0
    if not batch.inputs.is_floating_point():
        return batch
    inputs = batch.inputs.clone()
    inputs[empty] = 1e3
    return replace(batch, inputs=inputs)


def _size(vector: Tensor) -> float:
    """Norm, where what is not a number is infinitely long."""
    norm = float(vector.norm())
    return norm if math.isfinite(norm) else math.inf
