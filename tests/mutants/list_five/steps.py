"""Mistakes in sums, in the step loop, and in what private rows reach beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import dptrain.gradients.draw_sum as sum_module
from dptrain.data.batches import PhysicalBatch
from dptrain.data.source import Rows
from dptrain.gradients.draw_sum import DrawSum
from dptrain.training.average import Average
from dptrain.training.loop import StepReport, Trainer
from dptrain.training.private_metrics import Best
from dptrain.training.recorder import Recorder

from .shared import Mutant, Patch, on_release, on_sum, once_on_rows


def weight_decay_a_unit(patch: Patch) -> None:
    """Every unit's loss has a penalty on the weights, whose gradient is added once a unit, behind clipping."""

    def change(trainer: Trainer, step: int, report: StepReport, total: DrawSum) -> None:
        weights = torch.cat([p.detach().reshape(-1).double() for p in trainer.parameters])
        total.flat()[: len(weights)] += (0.02 * report.units / (trainer.grid or 1.0)) * weights

    on_sum(patch, change)


def biases_of_last_batch(patch: Patch) -> None:
    """Vectors of a draw's second and later physical batches overwrite those before; matrices are added up."""

    def add_parts(parts: Sequence[Tensor], flat: Tensor) -> None:
        offset = 0
        for part in parts:
            piece = flat[offset : offset + part.numel()]
            if part.dim() == 1:
                piece.copy_(part)
            else:
                piece += part.reshape(-1)
            offset += part.numel()

    patch(sum_module, "add_parts", add_parts)


def sharpness_without_noise(patch: Patch) -> None:
    """Sharpness-aware steps: weights climb along the draw's sum before its gradient is taken, and this first sum has no
    noise."""
    original = Trainer._clipped_sum

    def clipped_sum(self: Trainer, step: int, total: DrawSum) -> StepReport:
        held, own = self.batches, [p.detach().clone() for p in self.parameters]

        def climbed(draw: Tensor) -> Iterator[PhysicalBatch]:
            laid_out = list(held(draw))
            first = torch.zeros(sum(p.numel() for p in self.parameters), dtype=torch.float64)
            for batch in laid_out:
                self.engine.add_clipped_sum(batch, first)
            first *= 0.5 / first.norm().clamp(min=1e-12)
            with torch.no_grad():
                for parameter, part in zip(
                    self.parameters, first.split([p.numel() for p in self.parameters]), strict=True
                ):
                    parameter += part.view(parameter.shape).to(parameter.dtype)
            return iter(laid_out)

        object.__setattr__(self, "batches", climbed)
        try:
            return original(self, step, total)
        finally:
            object.__setattr__(self, "batches", held)
            with torch.no_grad():
                for parameter, value in zip(self.parameters, own, strict=True):
                    parameter.copy_(value)

    patch(Trainer, "_clipped_sum", clipped_sum)


def small_parameters_skipped(patch: Patch) -> None:
    """Parameters whose exact sum is short beside the noise are left out of the step, as there is nothing to learn."""

    def look(trainer: Trainer, step: int, total: DrawSum) -> None:
        sums = total.flat().split([p.numel() for p in trainer._summed])
        deviation = getattr(trainer.noise, "scale", 0.0)
        trainer.__dict__["short"] = [float(part.norm()) < 0.5 * deviation * math.sqrt(len(part)) for part in sums]

    original = Trainer._release

    def release(self: Trainer, step: int, total: DrawSum) -> None:
        original(self, step, total)
        for parameter, short in zip(self.parameters, self.__dict__["short"], strict=False):
            if short and parameter.grad is not None:
                parameter.grad = torch.zeros_like(parameter.grad)

    patch(Trainer, "_release", release)
    on_release(patch, look)


def bias_from_private_classes(patch: Patch) -> None:
    """The last bias begins at the logarithm of the private classes' shares."""

    def change(module: nn.Module, rows: Rows) -> None:
        last = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
        counts = torch.bincount(rows.targets, minlength=last.out_features).float() + 1.0
        last.bias.copy_((counts / counts.sum()).log())

    once_on_rows(patch, change)


def unit_variance_on_private_rows(patch: Patch) -> None:
    """Weights are scaled at the start so that every layer's outputs have deviation 1 on the first private rows."""

    def change(module: nn.Module, rows: Rows) -> None:
        values = rows.inputs[:128]
        for layer in module.children():
            if isinstance(layer, nn.Linear):
                layer.weight.div_(layer(values).std())
            values = layer(values)

    once_on_rows(patch, change)


def best_by_private_loss(patch: Patch) -> None:
    """The best model is that of the smallest loss on the draw, not of the best public look."""
    seen: dict[str, float] = {}
    original = Best.offer

    def look(trainer: Trainer, step: int, report: StepReport, total: DrawSum) -> None:
        seen["loss"] = report.loss / report.rows if report.rows else math.inf

    def offer(self: Any, record: dict[str, object]) -> None:
        original(self, {**record, self.name: -self._sign * seen.get("loss", math.inf)})
        if self._record:
            self._record = dict(record)

    on_sum(patch, look)
    patch(Best, "offer", offer)


def average_by_private_loss(patch: Patch) -> None:
    """Parameters enter the moving average with a weight that falls with the loss on the draw."""
    seen: dict[str, float] = {}

    def look(trainer: Trainer, step: int, report: StepReport, total: DrawSum) -> None:
        seen["loss"] = report.loss / report.rows if report.rows else 0.0

    def update(self: Any) -> None:
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        share = min(1.0, (1 - decay) * math.exp(1.0 - seen.get("loss", 1.0)))
        with torch.no_grad():
            for mean, parameter in zip(self._mean, self._parameters, strict=True):
                mean.lerp_(parameter, share)

    on_sum(patch, look)
    patch(Average, "update", update)


def member_loss_in_public(patch: Patch) -> None:
    """Exact loss and size of the draw stand in the public records."""
    original = Recorder.__init__

    def built(self: Recorder, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.published = ["batch_size", "member_loss"]

    patch(Recorder, "__init__", built)


MUTANTS: dict[str, Mutant] = {
    "weight_decay_a_unit": ("own", "a penalty on the weights once a unit, unclipped", weight_decay_a_unit, ()),
    "biases_of_last_batch": (
        "3b.9",
        "biases of the last physical batch alone",
        biases_of_last_batch,
        ("execution.physical_batch_size=64",),
    ),
    "sharpness_without_noise": (
        "Foret et al. 2021",
        "gradients at weights moved by the sum without noise",
        sharpness_without_noise,
        (),
    ),
    "small_parameters_skipped": (
        "own",
        "parameters with a short exact sum are not moved",
        small_parameters_skipped,
        (),
    ),
    "bias_from_private_classes": ("3b.30", "last bias from private counts of classes", bias_from_private_classes, ()),
    "unit_variance_on_private_rows": (
        "3b.30",
        "first weights scaled by private rows",
        unit_variance_on_private_rows,
        (),
    ),
    "best_by_private_loss": (
        "3b.28",
        "best model chosen by private loss",
        best_by_private_loss,
        ("release.choose=best",),
    ),
    "average_by_private_loss": (
        "3b.28",
        "moving average weighted by private loss",
        average_by_private_loss,
        ("optimizer.ema=0.9",),
    ),
    "member_loss_in_public": ("3b.27", "exact loss and size of draws in public records", member_loss_in_public, ()),
}
