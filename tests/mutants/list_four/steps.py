"""Mistakes in sums, in the step loop and in what an optimizer is told."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from dptrain.data.batches import PhysicalBatch
from dptrain.gradients.bookkeeping.engine import BookkeepingEngine
from dptrain.gradients.draw_sum import DrawSum
from dptrain.gradients.protocol import UnitStats
from dptrain.training.loop import StepReport, Trainer

from .needed import own
from .shared import Mutant, Patch, on_released, on_sum


def sum_wraps(patch: Patch) -> None:
    """Sums are whole numbers of too few bits: where a coordinate reaches 2 C, it begins again at -2 C."""

    def change(trainer: Trainer, step: int, report: StepReport, total: DrawSum) -> None:
        mechanism: Any = trainer.plan.mechanism
        reach = 2.0 * mechanism.clipping_norm / (trainer.grid or 1.0)
        flat = total.flat()
        flat.copy_(torch.remainder(flat + reach, 2.0 * reach) - reach)

    on_sum(patch, change)


def top_half_of_sum(patch: Patch) -> None:
    """Gradient compression before the noise: of a sum, only the larger half of its coordinates is released."""

    def change(trainer: Trainer, step: int, report: StepReport, total: DrawSum) -> None:
        flat = total.flat()
        flat[flat.abs() < flat.abs().median()] = 0.0

    on_sum(patch, change)


def mean_of_physical_batches(patch: Patch) -> None:
    """A draw's sum is the mean of its physical batches' sums: half as large where there are two."""
    add, clear = DrawSum.add, DrawSum.clear

    def added(self: Any, engine: Any, batch: PhysicalBatch, first: int = 0, last: int | None = None) -> UnitStats:
        self.count = self.__dict__.get("count", 0) + (1 if first == 0 else 0)
        return add(self, engine, batch, first, last)

    def cleared(self: Any) -> None:
        self.count = 0
        clear(self)

    patch(DrawSum, "add", added)
    patch(DrawSum, "clear", cleared)

    def change(trainer: Trainer, step: int, report: StepReport, total: Any) -> None:
        total.flat().div_(max(1, total.__dict__.get("count", 1)))

    on_sum(patch, change)


def second_moment_of_clean_sum(patch: Patch) -> None:
    """Adam's second moment is kept of the sum without noise, so that noise does not blow it up."""

    def change(trainer: Trainer, step: int, clean: list[Tensor]) -> None:
        trainer.__dict__["clean"] = clean

    original = Trainer._step

    def taken(self: Trainer, done: int, total: DrawSum) -> StepReport:
        report = original(self, done, total)
        for group in self.optimizer.param_groups:
            forget = 1.0 - group["betas"][1] if "betas" in group else 0.0
            for parameter, exact in zip(self.parameters, self.__dict__["clean"], strict=True):
                moment = self.optimizer.state[parameter].get("exp_avg_sq")
                if moment is not None and parameter.grad is not None:
                    moment += forget * (exact.square() - parameter.grad.square())
                    moment.clamp_(min=0.0)
        return report

    on_released(patch, change)
    patch(Trainer, "_step", taken)


def sign_agreement(patch: Patch) -> None:
    """Coordinates that noise has given another sign than the sum's are left out of the step."""

    def change(trainer: Trainer, step: int, clean: list[Tensor]) -> None:
        for parameter, exact in zip(trainer.parameters, clean, strict=True):
            if parameter.grad is not None:
                parameter.grad *= parameter.grad * exact >= 0

    on_released(patch, change)


def rate_by_draw_size(patch: Patch) -> None:
    """The linear scaling rule: the learning rate is in proportion to the number of units that were drawn."""

    def change(trainer: Trainer, step: int, report: StepReport, total: DrawSum) -> None:
        for group in trainer.optimizer.param_groups:
            group["lr"] *= report.units / trainer.plan.expected_batch_size

    on_sum(patch, change)


def frozen_part_moves(patch: Patch) -> None:
    """An optimizer that knows all parameters moves the frozen ones, too, by a gradient that is neither clipped nor
    noised."""
    original = BookkeepingEngine.clipped_parts

    def clipped_parts(self: BookkeepingEngine, batch: PhysicalBatch) -> Any:
        found = original(self, batch)
        frozen = {name: p for name, p in self._module.named_parameters() if not p.requires_grad}
        rows = torch.nonzero(batch.weight).flatten()
        if frozen and len(rows):
            leaves = {name: p.detach().clone().requires_grad_() for name, p in frozen.items()}
            outputs = functional_call(self._module, leaves, (batch.inputs[rows],))
            loss = self._row_loss(outputs, batch.targets[rows]).mean()
            grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            for parameter, gradient in zip(frozen.values(), grads, strict=True):
                if gradient is not None:
                    parameter.data.sub_(0.05 * gradient)
        return found

    patch(BookkeepingEngine, "clipped_parts", clipped_parts)


def empty_draw_unrecorded(patch: Patch) -> None:
    """A step whose draw is empty is taken, and not put on record: nothing private was used."""
    original = Trainer._step
    on_sum(patch, lambda trainer, step, report, total: trainer.__dict__.update(latest=report))

    def taken(self: Trainer, done: int, total: DrawSum) -> StepReport:
        held = self.intend

        def intend(step: int) -> None:
            if self.__dict__["latest"].units:
                held(step)

        object.__setattr__(self, "intend", intend)
        try:
            return original(self, done, total)
        finally:
            object.__setattr__(self, "intend", held)

    patch(Trainer, "_step", taken)


def shrunk_by_clean_norm(patch: Patch) -> None:
    """James-Stein: the noisy gradient is shrunk by how much of its square is the sum's, as the sum itself tells."""

    def change(trainer: Trainer, step: int, clean: list[Tensor]) -> None:
        mechanism: Any = trainer.plan.mechanism
        square = sum(float(exact.square().sum()) for exact in clean)
        count = sum(exact.numel() for exact in clean)
        noise = count * (mechanism.noise_std / trainer.plan.expected_batch_size) ** 2
        for parameter in trainer.parameters:
            if parameter.grad is not None:
                parameter.grad *= square / (square + noise)

    on_released(patch, change)


MUTANTS: dict[str, Mutant] = {
    "sum_wraps": ("3b.25", "sums wrap around at 2 C", sum_wraps, ()),
    "top_half_of_sum": ("own", "smaller half of a sum left out before the noise", top_half_of_sum, ()),
    "mean_of_physical_batches": ("3b.7", "mean over a draw's physical batches", mean_of_physical_batches, ()),
    "second_moment_of_clean_sum": (
        "own",
        "Adam's second moment without noise",
        second_moment_of_clean_sum,
        ("optimizer=adam",),
    ),
    "sign_agreement": ("own", "coordinates whose sign noise changed are not moved", sign_agreement, ()),
    "rate_by_draw_size": ("3b.3", "learning rate follows the size of the draw", rate_by_draw_size, ()),
    "frozen_part_moves": ("own", "frozen parameters move without noise", frozen_part_moves, own("adapted")),
    "empty_draw_unrecorded": (
        "3b.11",
        "steps of empty draws without intent",
        empty_draw_unrecorded,
        ("privacy.expected_batch_size=2",),
    ),
    "shrunk_by_clean_norm": ("own", "gradient shrunk by the exact norm of the sum", shrunk_by_clean_norm, ()),
}
