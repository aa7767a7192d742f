"""From gradients of rows to the clipped sum: the code that every engine with per-row gradients shares.

The gradients that arrive here may be wrong in their last digits, huge, or not numbers at all; what leaves is
bounded whatever arrived, because the norm is taken of the very values that are added afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dptrain.errors import ConfigError
from dptrain.gradients.protocol import ClippingRule

_CHUNK = 1 << 19
"""Float64 values worked on at once on a CPU: 4 MiB, which stays in cache between the passes over it."""

_CHUNK_ACCELERATOR = 1 << 26
"""The same elsewhere, where launching work costs more than moving it: 512 MiB."""

_LARGEST_CONTRIBUTION = 2.0**32
"""Most grid steps that one contribution may span; keeps sums of 2^20 units exact in float64."""


def check_grid(rule: ClippingRule) -> None:
    """Refuses a grid too fine for exact sums.

    Guarantee: under a rule that passes, the sum of up to ``largest_exact_draw(rule)`` contributions, in any order,
    is a float64 without rounding.

    Raises:
        ConfigError: a contribution may span more than 2^32 grid steps.
        ValueError: a number that is not finite and positive.
    """
    if not 0.0 < rule.clipping_norm < float("inf"):
        raise ValueError(f"clipping_norm={rule.clipping_norm} is not a finite number above 0")
    if rule.grid is not None and not 0.0 < rule.grid < float("inf"):
        raise ValueError(f"grid={rule.grid} is not a finite number above 0")
    if rule.grid is not None and rule.clipping_norm / rule.grid > _LARGEST_CONTRIBUTION:
        raise ConfigError(
            "privacy.sensitivity_slack",
            f"a grid of {rule.grid:g}",
            f"is too fine for clipping_norm={rule.clipping_norm:g}: contributions above 2^32 steps do not sum exactly",
            "raise privacy.sensitivity_slack",
        )


def largest_exact_draw(rule: ClippingRule) -> int:
    """Number of units whose contributions surely sum without rounding (a training loop refuses more units)."""
    if rule.grid is None:
        raise ValueError("sums without a grid are not exact")
    return int(2.0**52 // (rule.clipping_norm / rule.grid + 1.0))


def add_clipped_rows(
    grads: Sequence[Tensor], unit: Tensor, weight: Tensor, rule: ClippingRule, total: Tensor
) -> Tensor:
    """Adds up the rows of each unit, clips every unit and adds the contributions to ``total`` in place.

    Guarantee: a slot adds a vector of norm at most C before rounding to the grid (which moves each coordinate by
    at most half a step); a slot with a non-finite value in any of its weighted rows, or whose squared norm
    overflows float64, adds exactly nothing; rows of weight 0 add exactly nothing, whatever they hold.

    Args:
        grads: one (R, *shape) tensor per parameter: gradient of each row's weighted loss.
        unit: (R,) int64 slot of each row.
        weight: (R,) row weights; rows of weight 0 are ignored.
        rule: clipping norm and grid.
        total: (D,) float64, in grid steps where the rule has a grid.

    Returns:
        (R,) float64 norm of each slot before clipping (inf or NaN where not finite); 0 for empty slots.
    """
    num_slots = len(weight)
    flat = [g.reshape(num_slots, -1) for g in grads]
    live = weight != 0
    slots, owner = torch.unique(unit[live], return_inverse=True)
    if len(slots) < len(owner):
        rows = torch.nonzero(live).flatten()
        flat = [_sum_rows_of_units(g, rows, owner, len(slots)) for g in flat]
        live = torch.ones_like(slots, dtype=torch.bool)
    else:
        slots = unit
    squared = torch.zeros(len(slots), dtype=torch.float64, device=total.device)
    for _, values in _chunks(flat):
        squared += values.square_().sum(1)
    norms = squared.sqrt_()
    # NaN compares as False: whatever is not a finite number is dropped.
    kept = live & (norms < float("inf"))
    factor = torch.where(kept, clip_factor(norms, rule, len(total)), 0.0)
    dropped = torch.nonzero(~kept).flatten()
    for columns, values in _chunks(flat):
        if len(dropped):
            values.index_fill_(0, dropped, 0.0)  # 0 * inf would be NaN
        values.mul_(factor[:, None])
        if rule.grid is not None:
            values.round_()
        total[columns] += values.sum(0)
    return torch.zeros(num_slots, dtype=torch.float64, device=total.device).index_copy_(0, slots[live], norms[live])


def clip_factor(norm: Tensor, rule: ClippingRule, num_parameters: int) -> Tensor:
    """What a unit's gradient of the given finite norm is multiplied by: at most 1, and at most C / norm, over the grid.

    Guarantee: values times this factor have norm at most C (in grid steps: C / grid), float64 errors included. A
    float64 sum of D squares is low by at most D 2^-53 of itself, and the square root, the division and the two
    products by a few 2^-53 more (Higham 2002, sections 3.1 and 4.2); the factor is lowered by more than all of them.
    """
    margin = 1.0 - (num_parameters + 32) * 2.0**-53
    # Dividing by 0 gives infinity, and the smaller of it and 1 is 1: a zero gradient stays as it is.
    factor = (rule.clipping_norm * margin / norm).clamp_(max=1.0)
    return factor if rule.grid is None else factor / rule.grid


def _sum_rows_of_units(grad: Tensor, rows: Tensor, owner: Tensor, units: int) -> Tensor:
    """Sums the given rows of (R, n) into (units, n) float64. Kept, not recomputed: both passes must see these values.

    Args:
        rows: (K,) rows to sum.
        owner: (K,) unit of each of them.
        units: number of units.
    """
    sums = torch.zeros((units, grad.shape[1]), dtype=torch.float64, device=grad.device)
    step = max(1, _chunk_size(grad) // max(grad.shape[1], 1))
    for start in range(0, len(rows), step):
        sums.index_add_(0, owner[start : start + step], grad[rows[start : start + step]].to(torch.float64))
    return sums


def _chunk_size(like: Tensor) -> int:
    return _CHUNK if like.device.type == "cpu" else _CHUNK_ACCELERATOR


def _chunks(flat: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """Columns of the (R, D) matrix that the parameters form side by side, a cache's worth at a time.

    Yields:
        the columns' place in the flat vector, and a float64 copy (R, columns) that the caller may overwrite; it is
        reused for the next chunk.
    """
    rows = flat[0].shape[0]
    width = max(1, _chunk_size(flat[0]) // max(rows, 1))
    widest = min(width, max(g.shape[1] for g in flat))
    scratch = torch.empty(rows * widest, dtype=torch.float64, device=flat[0].device)
    done = 0
    for grad in flat:
        for start in range(0, grad.shape[1], width):
            part = grad[:, start : start + width]
            values = scratch[: part.numel()].view(part.shape)
            yield slice(done + start, done + start + part.shape[1]), values.copy_(part)
        done += grad.shape[1]
