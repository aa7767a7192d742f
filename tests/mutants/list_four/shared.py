"""What several of the mistakes are made with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dptrain.gradients.bookkeeping.contribution import Contribution
from dptrain.gradients.bookkeeping.engine import BookkeepingEngine
from dptrain.gradients.bookkeeping.groups import Groups
from dptrain.gradients.bookkeeping.tape import Tape
from dptrain.gradients.clip import clip_factor
from dptrain.gradients.draw_sum import DrawSum
from dptrain.gradients.protocol import ClippingRule
from dptrain.noise.secure import SecureNoise
from dptrain.training.loop import StepReport, Trainer

Patch = Callable[[Any, str, Any], None]
Mutant = tuple[str, str, Callable[[Patch], None], tuple[str, ...]]
PIECE = 1 << 15
"""Coordinates of a piece of secure noise."""


def on_noise(patch: Patch, change: Callable[[SecureNoise, int, Tensor], Tensor]) -> None:
    """Lets every step's whole secure noise vector go through ``change``."""
    original = SecureNoise.pieces

    def pieces(self: SecureNoise, step: int, count: int) -> Iterator[Tensor]:
        whole = torch.cat([piece.clone() for piece in original(self, step, count)])
        return iter(change(self, step, whole).split(PIECE))

    patch(SecureNoise, "pieces", pieces)


Clip = Callable[[Any, dict[str, Contribution], Groups, int], tuple[Tensor, Tensor]]


def on_clip(patch: Patch, change: Callable[[Clip, Any, dict[str, Contribution], Groups, int], Any]) -> None:
    """Puts ``change`` in the place of the bookkeeping engine's step from contributions to norms and factors."""
    original: Clip = BookkeepingEngine._clip
    patch(BookkeepingEngine, "_clip", lambda self, found, groups, size: change(original, self, found, groups, size))


def on_norms(patch: Patch, change: Callable[[str, Contribution], Tensor | None]) -> None:
    """Lets ``change`` replace a parameter's (U,) squared norms, by name; None leaves them."""

    def clip(original: Clip, engine: Any, found: dict[str, Contribution], groups: Groups, size: int) -> Any:
        for name, contribution in found.items():
            squared = change(name, contribution)
            if squared is not None:
                contribution.squared_norm = squared
        return original(engine, found, groups, size)

    on_clip(patch, clip)


def on_entered(patch: Patch, change: Callable[[Tape, str, Any], Tensor | None]) -> None:
    """Lets ``change`` replace the squared norms of a use that is resolved at once, knowing what the use saw."""
    original = Tape.enter

    def enter(self: Tape, name: str, seen: Any) -> None:
        squared = change(self, name, seen)
        original(self, name, seen)
        if squared is not None and name in self.contributions:
            self.contributions[name].squared_norm = squared

    patch(Tape, "enter", enter)


def forgotten(patch: Patch, names: str) -> None:
    """The parameters whose names are in that attribute of a tape have no norm."""
    finish = Tape.finish

    def finished(self: Tape) -> dict[str, Contribution]:
        found = finish(self)
        for name in self.__dict__.get(names, ()):
            if name in found:
                found[name].squared_norm = torch.zeros_like(found[name].squared_norm)
        return found

    patch(Tape, "finish", finished)


def on_sum(patch: Patch, change: Callable[[Trainer, int, StepReport, DrawSum], None]) -> None:
    """Calls ``change`` with every draw's clipped sum, before its noise."""
    original = Trainer._clipped_sum

    def clipped_sum(self: Trainer, step: int, total: DrawSum) -> StepReport:
        report = original(self, step, total)
        change(self, step, report, total)
        return report

    patch(Trainer, "_clipped_sum", clipped_sum)


def sums_of(trainer: Trainer, total: DrawSum) -> list[Tensor]:
    """The draw's sum without noise, as gradients of the trained parameters."""
    scale = (trainer.grid or 1.0) / trainer.plan.expected_batch_size
    sizes = [p.numel() for p in trainer.parameters]
    pieces = total.flat()[: sum(sizes)].split(sizes)
    return [(scale * s).view(p.shape).to(p.dtype) for s, p in zip(pieces, trainer.parameters, strict=True)]


def on_released(patch: Patch, change: Callable[[Trainer, int, list[Tensor]], None]) -> None:
    """Calls ``change`` behind every release, before the optimizer, with the gradients without noise."""
    original = Trainer._release

    def release(self: Trainer, step: int, total: DrawSum) -> None:
        clean = sums_of(self, total)
        original(self, step, total)
        change(self, step, clean)

    patch(Trainer, "_release", release)


def clipped_by(norms_of: Callable[[list[Tensor]], Tensor]) -> Callable[..., Tensor]:
    """``add_clipped_rows`` whose norms are a function of the units' gradients, one (U, *shape) float64 a parameter."""

    def add_clipped_rows(
        grads: Sequence[Tensor], unit: Tensor, weight: Tensor, rule: ClippingRule, total: Tensor
    ) -> Tensor:
        live = torch.nonzero(weight != 0).flatten()
        slots, owner = torch.unique(unit[live], return_inverse=True)
        sums = [
            torch.zeros((len(slots), *g.shape[1:]), dtype=torch.float64).index_add_(0, owner, g[live].double())
            for g in grads
        ]
        norms = norms_of(sums)
        flat = torch.cat([s.flatten(1) for s in sums], 1)
        fine = flat.isfinite().all(1) & norms.isfinite()
        factor = torch.where(fine, clip_factor(norms, rule, len(total)), 0.0)
        parts = torch.where(fine[:, None], flat, 0.0) * factor[:, None]
        total += (parts if rule.grid is None else parts.round()).sum(0)
        return torch.zeros(len(weight), dtype=torch.float64).index_copy_(0, slots, norms)

    return add_clipped_rows
