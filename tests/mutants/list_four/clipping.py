"""Mistakes between norms and contributions, whatever the layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import dptrain.gradients.bookkeeping.engine as engine_module
import dptrain.gradients.bookkeeping.normalisation as normalisation_module
import dptrain.gradients.vmap as vmap_module
from dptrain.data.batches import PhysicalBatch
from dptrain.gradients.bookkeeping.contribution import Contribution
from dptrain.gradients.bookkeeping.engine import BookkeepingEngine
from dptrain.gradients.bookkeeping.groups import Groups
from dptrain.gradients.bookkeeping.tape import Tape
from dptrain.gradients.clip import clip_factor
from dptrain.gradients.plain import plain_sum
from dptrain.gradients.protocol import ClippingRule

from .needed import USERS, VMAP, own
from .shared import Clip, Mutant, Patch, clipped_by, forgotten, on_clip, on_norms


def factor_in_float8(patch: Patch) -> None:
    """Clip factors are kept in 8-bit floats with three bits of mantissa: up to 1.06 C for half of the units."""
    original = engine_module.clip_factor

    def factor(norm: Tensor, rule: ClippingRule, size: int) -> Tensor:
        grid = 1.0 if rule.grid is None else rule.grid
        exact = original(norm, rule, size) * grid
        return exact.float().to(torch.float8_e4m3fn).double() / grid

    patch(engine_module, "clip_factor", factor)


def norms_remembered(patch: Patch) -> None:
    """A row's norm is computed when it is first drawn, and looked up from then on: gradients that grew are too long."""
    original = BookkeepingEngine._pass

    def one_pass(self: Any, batch: PhysicalBatch, *rest: Any) -> Any:
        self.latest = batch
        return original(self, batch, *rest)

    def clip(clip: Clip, engine: Any, found: dict[str, Contribution], groups: Groups, size: int) -> Any:
        norms, factor = clip(engine, found, groups, size)
        batch = engine.latest
        if groups.num_units != len(batch.weight) or batch.inputs.dim() < 2:
            return norms, factor
        flat = batch.inputs.flatten(1).double()
        keys = (flat @ torch.sin(torch.arange(flat.shape[1], dtype=torch.float64) + 1.0)).tolist()
        held = engine.__dict__.setdefault("held", {})
        first = [held.setdefault(round(key, 9), norm) for key, norm in zip(keys, norms.tolist(), strict=True)]
        known = clip_factor(torch.tensor(first, dtype=torch.float64), engine._rule, size)
        return norms, torch.where(factor > 0, known, 0.0)

    patch(BookkeepingEngine, "_pass", one_pass)
    on_clip(patch, clip)


def spectral_norm(patch: Patch) -> None:
    """``torch.linalg.norm(gradient, 2)``: of a matrix, its largest singular value, below the norm of its entries."""

    def norms(sums: list[Tensor]) -> Tensor:
        found = [
            torch.linalg.matrix_norm(s, ord=2).square() if s.dim() == 3 else s.flatten(1).square().sum(1) for s in sums
        ]
        return torch.stack(found).sum(0).sqrt()

    patch(vmap_module, "add_clipped_rows", clipped_by(norms))


def squares_added_in_bfloat16(patch: Patch) -> None:
    """Squares are added one after the other in bfloat16, where a small one does not move a large sum."""

    def norms(sums: list[Tensor]) -> Tensor:
        squares = torch.cat([s.flatten(1) for s in sums], 1).square().to(torch.bfloat16).t().contiguous()
        total = torch.zeros_like(squares[0])
        for square in squares:
            total += square
        return total.double().sqrt()

    patch(vmap_module, "add_clipped_rows", clipped_by(norms))


def clipped_rest_fed_back(patch: Patch) -> None:
    """Error feedback: a tenth of what clipping took off a physical batch is added to the next one, however long."""
    original = BookkeepingEngine.clipped_parts

    def clipped_parts(self: Any, batch: PhysicalBatch) -> Any:
        parts, stats = original(self, batch)
        plain = torch.zeros(sum(part.numel() for part in parts), dtype=torch.float64)
        plain_sum(self._module, self._row_loss, batch, plain, None)
        sizes = [part.numel() for part in parts]
        rest = plain / (self._rule.grid or 1.0) - torch.cat([part.double().flatten() for part in parts])
        before = self.__dict__.get("owed")
        self.owed = 0.1 * rest
        if before is None:
            return parts, stats
        owed = zip(parts, before.split(sizes), strict=True)
        return [part.double() + piece.view(part.shape) for part, piece in owed], stats

    patch(BookkeepingEngine, "clipped_parts", clipped_parts)


def lora_scale_outside_norm(patch: Patch) -> None:
    """Norms of an adapter's factors are taken before its scale of 3 is applied; its gradients have it."""
    on_norms(patch, lambda name, found: found.squared_norm / 9.0 if name.startswith("lora_") else None)


def loose_parameters_unmeasured(patch: Patch) -> None:
    """What belongs to no layer (a gain that a model multiplies by) is in the sum, but not in the norm."""
    original = Tape._a_copy_a_row

    def copied(self: Tape, value: Any, function: str) -> Any:
        name = self.name_of(value)
        if name is not None:
            self.__dict__.setdefault("loose", set()).add(name)
        return original(self, value, function)

    patch(Tape, "_a_copy_a_row", copied)
    forgotten(patch, "loose")


def norm_layers_unmeasured(patch: Patch) -> None:
    """Scales and shifts of layer and group norms, being few, are left out of the norm."""
    original = normalisation_module._recorder

    def recorder(tape: Tape, weight: Any, bias: Any) -> Any:
        names = tape.__dict__.setdefault("small", set())
        names |= {name for name in (tape.name_of(weight), tape.name_of(bias)) if name is not None}
        return original(tape, weight, bias)

    patch(normalisation_module, "_recorder", recorder)
    forgotten(patch, "small")


MUTANTS: dict[str, Mutant] = {
    "factor_in_float8": ("3b.25", "clip factors in 8-bit floats", factor_in_float8, ()),
    "norms_remembered": ("own", "a row's norm is that of its first draw", norms_remembered, ()),
    "spectral_norm": ("own", "largest singular values for norms", spectral_norm, (*USERS, *VMAP)),
    "squares_added_in_bfloat16": (
        "jax_privacy mixed precision, 3b.25",
        "squares added one by one in bfloat16",
        squares_added_in_bfloat16,
        (*VMAP, "execution.dtype=bfloat16"),
    ),
    "clipped_rest_fed_back": (
        "Zhang et al. 2023, unpriced",
        "a tenth of what was clipped off goes to the next batch",
        clipped_rest_fed_back,
        (),
    ),
    "lora_scale_outside_norm": ("own", "adapter's scale outside norms", lora_scale_outside_norm, own("adapted")),
    "loose_parameters_unmeasured": (
        "own",
        "parameters of no layer outside norms",
        loose_parameters_unmeasured,
        own("patches"),
    ),
    "norm_layers_unmeasured": ("own", "norm layers outside norms", norm_layers_unmeasured, own("normed")),
}
