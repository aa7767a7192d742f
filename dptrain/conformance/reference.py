"""What units ought to contribute, computed beside the engine.

By float64 autograd, one row at a time. Where gradients are rough, that says little: under bfloat16 autocast, and for a
unit of huge numbers whose logits round in float32, a gradient is what the engine's arithmetic makes of the unit, up to
percents away from float64's, and the promise is about the values that are added, whatever they are. There a unit's
gradient is the engine's own, of that unit alone and not clipped; norms, clipping, sums and everything after are
computed here as ever, to the same tolerances. ``rough_gradients`` asks by itself whether gradients in bfloat16 are
anything like the float64 ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dptrain.conformance.stand import Result, Stand
from dptrain.data.batches import PhysicalBatch
from dptrain.gradients.protocol import Engine, UnitStats
from dptrain.gradients.recompute import Recomputed, clipped, unit_gradients

UNCLIPPED = 2.0**60
"""A clipping norm above every gradient."""
ROUGH = 0.5
"""How far, over C, clipped gradients in bfloat16 may be from float64's, in three units of four."""


def added(engine: Engine, batch: PhysicalBatch, size: int) -> tuple[Tensor, UnitStats]:
    """The clipped sum (D,) of one batch, and what the engine says of it."""
    total = torch.zeros(size, dtype=torch.float64, device=batch.weight.device)
    stats = engine.add_clipped_sum(batch, total)
    return total, stats


def only(batch: PhysicalBatch, units: list[int]) -> PhysicalBatch:
    """The rows of these units, by themselves; their slots made small enough for the batch."""
    kept = torch.isin(batch.unit, torch.tensor(units, device=batch.unit.device))
    unit = torch.unique(batch.unit[kept], return_inverse=True)[1]
    return PhysicalBatch(batch.inputs[kept], batch.targets[kept], unit, batch.weight[kept])


def gradients(stand: Stand, batch: PhysicalBatch, units: Tensor, module: nn.Module | None = None) -> Iterator[Tensor]:
    """The gradient (D,) float64 of each unit, which clipping starts from.

    Args:
        stand: engine and loss.
        batch: holds the units' rows, slot = unit.
        units: (U,) slots.
        module: instead of the stand's.
    """
    own = torch.tensor([stand.is_own_yardstick(unit) for unit in units.tolist()], dtype=torch.bool)
    wide = unit_gradients(module or stand.module, stand.row_loss, batch, units[~own])
    engine = stand.engine(UNCLIPPED, module=module) if bool(own.any()) else None
    for unit, rough in zip(units.tolist(), own.tolist(), strict=True):
        yield added(engine, only(batch, [unit]), stand.count)[0] if rough and engine is not None else next(wide)


def exact(
    stand: Stand, batch: PhysicalBatch, units: Tensor, clip: float, module: nn.Module | None = None
) -> Recomputed:
    """Norms and clipped sum of these units; see ``gradients``."""
    return clipped(gradients(stand, batch, units, module), units, clip, stand.count, batch.weight.device)


def rough_gradients(stand: Stand) -> Result:
    """Whether the engine's gradients in bfloat16 are approximations of float64's: three units of four, within C / 2.

    Not of every unit: rounded logits of a unit of huge numbers can make another class the likeliest, and its gradient
    another one, in an honest run.
    """
    if not stand.is_rough:
        return Result("rough gradients", None, "gradients are held against float64 autograd one by one")
    batch, units = stand.all_rows(), torch.arange(stand.rows.num_units)
    wide = unit_gradients(stand.module, stand.row_loss, batch, units)
    errors = [
        float((_clip(own, stand.clip) - _clip(true, stand.clip)).norm()) / stand.clip
        for own, true in zip(gradients(stand, batch, units), wide, strict=True)
    ]
    typical = sorted(error if math.isfinite(error) else math.inf for error in errors)[(3 * len(errors)) // 4]
    says = f"three units of four are within {typical:.1e} C of float64 autograd (tolerance {ROUGH})"
    return Result("rough gradients", typical <= ROUGH, says)


def _clip(gradient: Tensor, clip: float) -> Tensor:
    norm = float(gradient.norm())
    return gradient * min(1.0, clip / norm) if norm > 0 else gradient
