"""What several of the mistakes are made with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import dptrain.training.assemble as assemble_module
from dptrain.data.batches import PhysicalBatch, UnitIndex
from dptrain.data.sampler import PoissonSampler
from dptrain.data.source import Rows
from dptrain.gradients.bookkeeping.contribution import Contribution
from dptrain.gradients.bookkeeping.engine import BookkeepingEngine
from dptrain.gradients.bookkeeping.groups import Groups
from dptrain.gradients.draw_sum import DrawSum
from dptrain.noise.secure import SecureNoise
from dptrain.training.loop import StepReport, Trainer

Patch = Callable[[Any, str, Any], None]
Mutant = tuple[str, str, Callable[[Patch], None], tuple[str, ...]]
PIECE = 1 << 15
"""Coordinates of a piece of secure noise."""


def on_noise(patch: Patch, change: Callable[[SecureNoise, int, Tensor], Tensor]) -> None:
    """Lets every step's whole noise vector, in grid steps, go through ``change``."""
    original = SecureNoise.pieces

    def pieces(self: SecureNoise, step: int, count: int) -> Iterator[Tensor]:
        whole = torch.cat([piece.clone() for piece in original(self, step, count)])
        return iter(change(self, step, whole).split(PIECE))

    patch(SecureNoise, "pieces", pieces)


def on_release(patch: Patch, look: Callable[[Trainer, int, DrawSum], None]) -> None:
    """Calls ``look`` with a draw's clipped sum just before its noise is drawn."""
    original = Trainer._release

    def release(self: Trainer, step: int, total: DrawSum) -> None:
        look(self, step, total)
        original(self, step, total)

    patch(Trainer, "_release", release)


def on_draw(patch: Patch, change: Callable[[Any, int, Tensor], Tensor]) -> None:
    """Lets every draw go through ``change`` with its sampler and step."""
    original = PoissonSampler.draw
    patch(PoissonSampler, "draw", lambda self, step: change(self, step, original(self, step)))


def on_batches(patch: Patch, change: Callable[[PhysicalBatch, Rows, UnitIndex], PhysicalBatch]) -> None:
    """Lets every physical batch go through ``change``, with the private rows it was taken from."""
    original = assemble_module.physical_batches

    def laid_out(draw: Tensor, rows: Rows, index: UnitIndex, *rest: Any) -> Iterator[PhysicalBatch]:
        for batch in original(draw, rows, index, *rest):
            yield change(batch, rows, index)

    patch(assemble_module, "physical_batches", laid_out)


Clip = Callable[[Any, dict[str, Contribution], Groups, int], tuple[Tensor, Tensor]]


def on_clip(patch: Patch, change: Callable[[Clip, Any, dict[str, Contribution], Groups, int], Any]) -> None:
    """Puts ``change`` in the place of the bookkeeping engine's step from contributions to norms and factors."""
    original: Clip = BookkeepingEngine._clip
    patch(BookkeepingEngine, "_clip", lambda self, found, groups, size: change(original, self, found, groups, size))


def on_sum(patch: Patch, change: Callable[[Trainer, int, StepReport, DrawSum], None]) -> None:
    """Calls ``change`` with every draw's clipped sum and report."""
    original = Trainer._clipped_sum

    def clipped_sum(self: Trainer, step: int, total: DrawSum) -> StepReport:
        report = original(self, step, total)
        change(self, step, report, total)
        return report

    patch(Trainer, "_clipped_sum", clipped_sum)


def once_on_rows(patch: Patch, change: Callable[[Any, Rows], None]) -> None:
    """Calls ``change`` with model and private rows while a trainer is put together, before the first step."""
    original = assemble_module.lengths_of

    def lengths_of(config: Any, module: Any, rows: Rows, index: UnitIndex) -> Tensor | None:
        with torch.no_grad():
            change(module, rows)
        return original(config, module, rows, index)

    patch(assemble_module, "lengths_of", lengths_of)


def grid_of(engine: Any) -> float:
    """What a clip factor of 1 is divided by in an engine."""
    return engine._rule.grid or 1.0
