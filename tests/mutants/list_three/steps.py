"""Mistakes in the step loop and behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dptrain.data.batches import PhysicalBatch
from dptrain.gradients.bookkeeping.engine import BookkeepingEngine
from dptrain.gradients.draw_sum import DrawSum
from dptrain.gradients.plain import plain_sum
from dptrain.keystream import Keystream
from dptrain.training.average import Average
from dptrain.training.loop import Outcome, StepReport, Trainer

from .shared import Mutant, Patch, on_released, on_sum, sums_of


def backward_beside(patch: Patch) -> None:
    """An ordinary backward pass leaves its gradient beside the noisy one: 1 % of the batch's mean, not clipped."""
    original = BookkeepingEngine.clipped_parts
    left: dict[int, Tensor] = {}

    def clipped_parts(self: BookkeepingEngine, batch: PhysicalBatch) -> Any:
        parts, stats = original(self, batch)
        found = torch.zeros(sum(part.numel() for part in parts), dtype=torch.float64)
        plain_sum(self._module, self._row_loss, batch, found, None)
        left[id(self)] = found / max(1, int((batch.weight > 0).sum()))
        return parts, stats

    def change(trainer: Trainer, step: int) -> None:
        mean = left.get(id(trainer.engine))
        if mean is None:
            return
        sizes = [p.numel() for p in trainer.parameters]
        for parameter, piece in zip(trainer.parameters, mean.split(sizes), strict=True):
            if parameter.grad is not None:
                parameter.grad += (0.01 * piece).view(parameter.shape).to(parameter.grad.dtype)

    patch(BookkeepingEngine, "clipped_parts", clipped_parts)
    on_released(patch, change)


def average_before_noise(patch: Patch) -> None:
    """The moving average takes in where the sum without noise would lead; it is what is released."""

    def change(trainer: Trainer, step: int, report: StepReport, total: DrawSum) -> None:
        if trainer.average is not None:
            held: Any = trainer.average
            rate = trainer.optimizer.param_groups[0]["lr"]
            found = zip(trainer.parameters, sums_of(trainer, total), strict=True)
            held.clean = [p.detach() - rate * s for p, s in found]

    original = Average.update

    def update(self: Any) -> None:
        own = self._parameters
        self._parameters = self.__dict__.get("clean", own)
        original(self)
        self._parameters = own

    on_sum(patch, change)
    patch(Average, "update", update)


def momentum_of_clean_sum(patch: Patch) -> None:
    """A twentieth of the sum without noise goes into the optimizer's momentum."""

    def change(trainer: Trainer, step: int, report: StepReport, total: DrawSum) -> None:
        for parameter, clean in zip(trainer.parameters, sums_of(trainer, total), strict=True):
            buffer = trainer.optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                buffer += 0.05 * clean

    on_sum(patch, change)


def step_taken_back(patch: Patch) -> None:
    """A step behind which the private loss is higher is taken back: which steps stay is decided without noise."""
    held: dict[int, tuple[float, list[Tensor]]] = {}

    @torch.no_grad()
    def change(trainer: Trainer, step: int, report: StepReport, total: DrawSum) -> None:
        now = report.loss / max(1.0, report.rows)
        before, old = held.get(id(trainer), (float("inf"), []))
        if now > before and old:
            for parameter, value in zip(trainer.parameters, old, strict=True):
                parameter.copy_(value)
        held[id(trainer)] = now, [p.detach().clone() for p in trainer.parameters]

    on_sum(patch, change)


def divisor_follows_draws(patch: Patch) -> None:
    """The divisor is the mean of the draws so far, which is private; half a draw's change moves it by a percent."""
    drawn: dict[int, list[int]] = {}
    on_sum(patch, lambda trainer, step, report, total: drawn.setdefault(id(trainer), []).append(report.units))

    def change(trainer: Trainer, step: int) -> None:
        seen = drawn[id(trainer)]
        for parameter in trainer.parameters:
            if parameter.grad is not None:
                parameter.grad *= trainer.plan.expected_batch_size / max(1.0, sum(seen) / len(seen))

    on_released(patch, change)


def rate_by_clipped_share(patch: Patch) -> None:
    """The learning rate is scaled by how many units of the draw were clipped, which is private."""
    base: dict[int, float] = {}

    def change(trainer: Trainer, step: int, report: StepReport, total: DrawSum) -> None:
        for group in trainer.optimizer.param_groups:
            first = base.setdefault(id(trainer), group["lr"])
            group["lr"] = first * (0.5 + report.clipped / max(1, report.units))

    on_sum(patch, change)


def intent_one_behind(patch: Patch) -> None:
    """The intent that is put on record is that of the step before: the last step is never on record."""
    built = Trainer.__post_init__

    def post_init(self: Trainer) -> None:
        built(self)
        intend: Callable[[int], None] = self.intend
        object.__setattr__(self, "intend", lambda step: intend(step - 1) if step > 1 else None)

    patch(Trainer, "__post_init__", post_init)


def resumed_from_older_state(patch: Patch) -> None:
    """A run that stopped after step 40 goes on from a state of step 32: eight steps are taken twice, counted once."""
    original = Trainer.run

    def run(self: Any, on_step: Any, done: int = 0, seconds: float = 0.0) -> Outcome:
        plan, intend, noise = self.plan, self.intend, self.noise
        if plan.steps <= 40 or done or noise is None or not hasattr(noise, "_keystream"):
            return original(self, on_step, done, seconds)
        object.__setattr__(self, "plan", replace(plan, steps=40))
        original(self, on_step, done, seconds)
        object.__setattr__(self, "plan", replace(plan, steps=40))
        object.__setattr__(self, "intend", lambda step: None)
        noise._keystream = Keystream()
        self.draw.__self__._keystream = noise._keystream
        original(self, lambda *_: None, 32, seconds)
        object.__setattr__(self, "plan", plan)
        object.__setattr__(self, "intend", intend)
        return original(self, on_step, 40, seconds)

    patch(Trainer, "run", run)


def stops_on_private_loss(patch: Patch) -> None:
    """Training ends once the private loss is below 0.9 of the first: when it ends tells about private rows."""
    first: dict[int, float] = {}

    def change(trainer: Trainer, step: int, report: StepReport, total: DrawSum) -> None:
        now = report.loss / max(1.0, report.rows)
        if step > 4 and now < 0.9 * first.setdefault(id(trainer), now):
            object.__setattr__(trainer, "plan", replace(trainer.plan, steps=step + 1))

    on_sum(patch, change)


def two_looks_at_a_draw(patch: Patch) -> None:
    """Every sixteenth step is taken with the average of two noisy releases of the same sum: noise over sqrt(2)."""
    original = Trainer._release

    def release(self: Trainer, step: int, total: DrawSum) -> None:
        if step % 16 != 15 or self.noise is None:
            original(self, step, total)
            return
        flat = total.flat().clone()
        original(self, step, total)
        first = [p.grad.clone() for p in self.parameters if p.grad is not None]
        held: Any = self.noise
        keystream, held._keystream = held._keystream, Keystream()
        total.flat().copy_(flat)
        original(self, step, total)
        held._keystream = keystream
        for parameter, other in zip(self.parameters, first, strict=True):
            if parameter.grad is not None:
                parameter.grad = (parameter.grad + other) / 2.0

    patch(Trainer, "_release", release)


MUTANTS: dict[str, Mutant] = {
    "backward_beside": ("dayu11 7", "1 % of an ordinary gradient beside the noisy one", backward_beside, ()),
    "average_before_noise": (
        "own",
        "moving average without the last step's noise",
        average_before_noise,
        ("optimizer.ema=0.9",),
    ),
    "momentum_of_clean_sum": ("own", "5 % of the sum in the momentum, without noise", momentum_of_clean_sum, ()),
    "step_taken_back": ("3b.28", "steps that raise the private loss are taken back", step_taken_back, ()),
    "divisor_follows_draws": ("3b.3", "divided by the mean of the draws so far", divisor_follows_draws, ()),
    "rate_by_clipped_share": ("3b.27", "learning rate follows the share of clipped units", rate_by_clipped_share, ()),
    "intent_one_behind": ("design 8", "intents are one step behind", intent_one_behind, ()),
    "resumed_from_older_state": ("3b.18, 3b.19", "eight steps taken twice", resumed_from_older_state, ()),
    "stops_on_private_loss": ("3b.28", "training ends by its private loss", stops_on_private_loss, ()),
    "two_looks_at_a_draw": ("3b.15", "every sixteenth sum is released twice", two_looks_at_a_draw, ()),
}
