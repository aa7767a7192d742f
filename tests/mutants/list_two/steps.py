"""Mistakes in the sum of a draw, and in the loop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dptrain.gradients.draw_sum import DrawSum
from dptrain.training.loop import StepReport, Trainer

from .needed import RARE
from .shared import Mutant, Patch, _on_sum


def first_batch_twice(patch: Patch) -> None:
    """A draw's first physical batch counts twice where there is a second."""
    original = DrawSum.flat

    def flat(self: DrawSum) -> Tensor:
        parts = [] if self._is_flat else list(self._parts)
        whole = original(self)
        for part, piece in zip(parts, whole.split(self._sizes), strict=False):
            if part is not None:
                piece += part.reshape(-1)
        return whole

    patch(DrawSum, "flat", flat)


def sum_left(patch: Patch) -> None:
    """Every eighth step's sum still holds that of the step before."""
    held: dict[int, Tensor] = {}

    def change(trainer: Trainer, step: int, report: StepReport, total: DrawSum) -> None:
        flat = total.flat()
        before, held[id(trainer)] = held.get(id(trainer)), flat.clone()
        if step % 8 == 7 and before is not None and len(before) == len(flat):
            flat += before

    _on_sum(patch, change)


def sum_guard(patch: Patch) -> None:
    """A sum of unusual norm, above half of C times the expected batch, is dropped."""

    def change(trainer: Trainer, step: int, report: StepReport, total: DrawSum) -> None:
        if trainer.plan.mechanism is None:
            return
        flat = total.flat()
        own = flat[: sum(p.numel() for p in trainer.parameters)]
        most = 0.5 * trainer.plan.mechanism.clipping_norm * trainer.plan.expected_batch_size / (trainer.grid or 1.0)
        if float(own.norm()) > most:
            own.zero_()

    _on_sum(patch, change)


def touched_before_noise(patch: Patch) -> None:
    """A hundredth of the sum goes into the weights before there is noise."""

    def change(trainer: Trainer, step: int, report: StepReport, total: DrawSum) -> None:
        scale = 0.01 * (trainer.grid or 1.0) / trainer.plan.expected_batch_size
        sizes = [p.numel() for p in trainer.parameters]
        with torch.no_grad():
            pieces = total.flat()[: sum(sizes)].split(sizes)
            for parameter, piece in zip(trainer.parameters, pieces, strict=True):
                parameter -= (scale * piece).view(parameter.shape).to(parameter.dtype)

    _on_sum(patch, change)


def rate_by_private_loss(patch: Patch) -> None:
    """The learning rate is a tenth higher in steps whose private loss is above 1."""

    def change(trainer: Trainer, step: int, report: StepReport, total: DrawSum) -> None:
        if report.rows and report.loss / report.rows > 1.0:
            for group in trainer.optimizer.param_groups:
                group["lr"] = group["lr"] * 1.1

    _on_sum(patch, change)


def empty_without_noise(patch: Patch) -> None:
    """An empty draw is released without noise."""
    nothing: dict[int, bool] = {}
    _on_sum(patch, lambda trainer, step, report, total: nothing.__setitem__(id(trainer), report.units == 0))
    original = Trainer._release

    def release(self: Trainer, step: int, total: DrawSum) -> None:
        if nothing.get(id(self)) and self.group is None:
            total.release(None, (self.grid or 1.0) / self.plan.expected_batch_size)
        else:
            original(self, step, total)

    patch(Trainer, "_release", release)


def small_draws_rescaled(patch: Patch) -> None:
    """A draw smaller than expected is divided by its own size."""
    drawn: dict[int, int] = {}
    _on_sum(patch, lambda trainer, step, report, total: drawn.__setitem__(id(trainer), report.units))
    original = Trainer._release

    def release(self: Trainer, step: int, total: DrawSum) -> None:
        original(self, step, total)
        units = max(1, drawn.get(id(self), 0))
        if units < self.plan.expected_batch_size:
            for parameter in self._summed:
                if parameter.grad is not None:
                    parameter.grad *= self.plan.expected_batch_size / units

    patch(Trainer, "_release", release)


def previous_gradient_left(patch: Patch) -> None:
    """The released gradient still holds a twentieth of the step before."""
    held: dict[int, list[Tensor]] = {}
    original = Trainer._release

    def release(self: Trainer, step: int, total: DrawSum) -> None:
        original(self, step, total)
        before = held.get(id(self))
        held[id(self)] = [p.grad.clone() for p in self.parameters if p.grad is not None]
        for parameter, old in zip(self.parameters, before or [], strict=False):
            if parameter.grad is not None and parameter.grad.shape == old.shape:
                parameter.grad += 0.05 * old

    patch(Trainer, "_release", release)


def _late_or_never(patch: Patch, late: Callable[[int], bool], at_all: Callable[[int], bool]) -> None:
    built, release = Trainer.__post_init__, Trainer._release
    kept: dict[int, Callable[[int], None]] = {}

    def post_init(self: Trainer) -> None:
        built(self)
        intend = kept[id(self)] = self.intend
        object.__setattr__(self, "intend", lambda step: intend(step) if at_all(step) and not late(step) else None)

    def released(self: Trainer, step: int, total: DrawSum) -> None:
        release(self, step, total)
        if late(step + 1):
            kept[id(self)](step + 1)

    patch(Trainer, "__post_init__", post_init)
    patch(Trainer, "_release", released)


def intent_after_noise(patch: Patch) -> None:
    """The intent of a step is put on record after its noise was added."""
    _late_or_never(patch, late=lambda step: True, at_all=lambda step: True)


def intent_every_second(patch: Patch) -> None:
    """Every second step is taken without an intent on record."""
    _late_or_never(patch, late=lambda step: False, at_all=lambda step: step % 2 == 0)


MUTANTS: dict[str, Mutant] = {
    "first_batch_twice": (
        "own",
        "first of several physical batches counts twice",
        first_batch_twice,
        ("execution.physical_batch_size=64",),
    ),
    "sum_left": ("own", "every eighth sum holds the one before too", sum_left, ()),
    "sum_guard": ("own", "unusually large sums are dropped", sum_guard, ()),
    "touched_before_noise": ("own", "1 % of the sum reaches the weights without noise", touched_before_noise, ()),
    "rate_by_private_loss": ("own", "learning rate follows the private loss", rate_by_private_loss, ()),
    "empty_without_noise": ("own", "an empty draw has no noise", empty_without_noise, RARE),
    "small_draws_rescaled": ("own", "small draws divided by their own size", small_draws_rescaled, ()),
    "previous_gradient_left": ("own", "5 % of the previous gradient left", previous_gradient_left, ()),
    "intent_after_noise": ("own", "intent on record after the noise", intent_after_noise, ()),
    "intent_every_second": ("own", "every second step without intent", intent_every_second, ()),
}
