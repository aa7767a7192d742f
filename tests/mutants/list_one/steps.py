"""Mistakes in the divisor and in the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dptrain.data.sampler import PoissonSampler
from dptrain.gradients.draw_sum import DrawSum
from dptrain.training import assemble
from dptrain.training.loop import Outcome, Trainer

from .shared import Mutant, Patch


def releases_with(divisor: Callable[[Any, Any], float]) -> Callable[[Patch], None]:
    """The sum of the draw is divided by something else than the public size of a draw."""

    def apply(patch: Patch) -> None:
        clipped, original, reports = Trainer._clipped_sum, Trainer._release, dict[int, Any]()

        def note(self: Any, step: int, total: DrawSum) -> Any:
            reports[id(total)] = clipped(self, step, total)
            return reports[id(total)]

        def release(self: Any, step: int, total: DrawSum) -> None:
            other = divisor(self.plan, reports[id(total)])
            original(replace(self, plan=replace(self.plan, expected_batch_size=other)), step, total)

        patch(Trainer, "_clipped_sum", note)
        patch(Trainer, "_release", release)

    return apply


def divisor_from_data(patch: Patch) -> None:
    original = Trainer

    def build(**parts: Any) -> Trainer:
        units, plan = parts["draw"].__self__.num_units, parts["plan"]
        return original(**{**parts, "plan": replace(plan, expected_batch_size=plan.sampling_rate * units)})

    patch(assemble, "Trainer", build)


def rate_from_data(patch: Patch) -> None:
    original = PoissonSampler.__init__

    def rate(self: Any, num_units: int, q: float, stream: Any) -> None:
        original(self, num_units, min(1.0, q * 24 / num_units), stream)

    patch(PoissonSampler, "__init__", rate)


def empty_draw_skipped(patch: Patch) -> None:
    def run(self: Any, on_step: Any, done: int = 0, seconds: float = 0.0) -> Outcome:
        total = DrawSum(self._summed, self.grid is not None)
        for step in range(done, self.plan.steps):
            report = self._clipped_sum(step, total)
            if report.units == 0:
                continue
            self.intend(step + 1)
            self._release(step, total)
            if self.selfcheck is not None:
                self.selfcheck.look(step + 1)
            self.optimizer.step()
            on_step(step + 1, report, 0.0)
        return Outcome(self.plan.steps, "finished", 0.0)

    patch(Trainer, "run", run)


def intent_after_noise(patch: Patch) -> None:
    original = Trainer._release

    def release(self: Any, step: int, total: DrawSum) -> None:
        original(self, step, total)
        object.__getattribute__(self, "held")(step + 1)

    begun = Trainer.__post_init__

    def init(self: Any) -> None:
        begun(self)
        object.__setattr__(self, "held", self.intend)
        object.__setattr__(self, "intend", lambda step: None)

    patch(Trainer, "__post_init__", init)
    patch(Trainer, "_release", release)


def steps(more: int) -> Callable[[Patch], None]:
    def apply(patch: Patch) -> None:
        original = Trainer.run

        def run(self: Any, *given: Any, **named: Any) -> Outcome:
            other = replace(self, plan=replace(self.plan, steps=self.plan.steps + more))
            return original(other, *given, **named)

        patch(Trainer, "run", run)

    return apply


def gradient_accumulates(patch: Patch) -> None:
    original, kept = Trainer._release, dict[int, list[Tensor]]()  # the loop itself lets go of a step's gradients

    def release(self: Any, step: int, total: DrawSum) -> None:
        original(self, step, total)
        if step == 0:
            kept.clear()
        for parameter, old in zip(self.parameters, kept.get(id(self), []), strict=False):
            parameter.grad = parameter.grad + old
        kept[id(self)] = [parameter.grad.clone() for parameter in self.parameters]

    patch(Trainer, "_release", release)


def sum_leaks_beside_the_optimizer(patch: Patch) -> None:
    original = Trainer._release

    def release(self: Any, step: int, total: DrawSum) -> None:
        flat = total.flat().clone()
        original(self, step, total)
        with torch.no_grad():
            self.parameters[0].add_(1e-6 * flat[: self.parameters[0].numel()].view_as(self.parameters[0]))

    patch(Trainer, "_release", release)


def frozen_parameter_moves(patch: Patch) -> None:
    original = Trainer._release

    def release(self: Any, step: int, total: DrawSum) -> None:
        amount = float(total.flat().sum())
        original(self, step, total)
        with torch.no_grad():
            for buffer in self.module.buffers():
                buffer.add_(amount)

    patch(Trainer, "_release", release)


def released_twice(patch: Patch) -> None:
    original = Trainer._release

    def release(self: Any, step: int, total: DrawSum) -> None:
        held = total.flat().clone()
        original(self, step, total)
        if step % 5 == 1:
            self.optimizer.step()
            total.flat().add_(held)
            original(replace(self, noise=_Fresh(self.noise)), step, total)

    patch(Trainer, "_release", release)


class _Fresh:
    """Another noise vector of the same scale, not the recorded one."""

    name = "fresh"

    def __init__(self, noise: Any) -> None:
        self.scale = getattr(getattr(noise, "inner", noise), "scale", 1.0)

    def pieces(self, step: int, count: int) -> Iterator[Tensor]:
        return iter([torch.randn(count, dtype=torch.float64).mul_(self.scale).round_()])


MUTANTS: dict[str, Mutant] = {
    "divisor_realised": ("3b.3", "divided by the units drawn", releases_with(lambda p, r: max(1, r.units)), ()),
    "divisor_rows": ("3b.3", "divided by the rows drawn", releases_with(lambda p, r: max(1.0, r.rows)), ()),
    "divisor_doubled": (
        "3b.7",
        "the accumulation factor enters the divisor",
        releases_with(lambda p, r: 2 * p.expected_batch_size),
        (),
    ),
    "divisor_from_data": ("3b.2", "divisor from the private number of units", divisor_from_data, ()),
    "rate_from_data": ("3b.2", "rate from the private number of units", rate_from_data, ()),
    "empty_draw_skipped": ("3b.11", "an empty draw is no step", empty_draw_skipped, ()),
    "intent_late": ("design 8", "intent on record after the noise", intent_after_noise, ()),
    "a_step_more": ("3b.19", "one step more than planned", steps(1), ()),
    "a_step_less": ("3a epoch length", "one step is lost", steps(-1), ()),
    "gradient_accumulates": ("3b.9", "gradients of steps are not cleared", gradient_accumulates, ()),
    "sum_leaks": ("own", "a parameter moves by the sum without noise", sum_leaks_beside_the_optimizer, ()),
    "buffer_leaks": (
        "3b.23",
        "buffers move by the sum without noise",
        frozen_parameter_moves,
        ("model=own", "model.name=mutants_counting"),
    ),
    "released_twice": ("3b.15", "a sum is released twice under one charge", released_twice, ()),
}
