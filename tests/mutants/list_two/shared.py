"""What several of the mistakes are made with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from torch import Tensor

import dptrain.data.batches as batches_module
import dptrain.gradients.bookkeeping.engine as engine_module
from dptrain.data.batches import PhysicalBatch
from dptrain.data.sampler import PoissonSampler
from dptrain.gradients.draw_sum import DrawSum
from dptrain.gradients.protocol import ClippingRule
from dptrain.keystream import Keystream, Purpose, Stream
from dptrain.noise.secure import SecureNoise
from dptrain.training.loop import StepReport, Trainer

Patch = Callable[[Any, str, Any], None]
Mutant = tuple[str, str, Callable[[Patch], None], tuple[str, ...]]


def _on_secure(patch: Patch, change: Callable[[SecureNoise, int, Tensor], Tensor]) -> None:
    """Lets every step's secure noise vector go through ``change``."""
    original = SecureNoise.pieces

    def pieces(self: SecureNoise, step: int, count: int) -> Iterator[Tensor]:
        whole = torch.cat([piece.clone() for piece in original(self, step, count)])
        return iter(change(self, step, whole).split(1 << 15))

    patch(SecureNoise, "pieces", pieces)


class _Changed:
    """A noise whose vectors go through a function of the trainer, the step and the vector."""

    def __init__(self, trainer: Trainer, noise: Any, change: Callable[[Trainer, int, Tensor], Tensor]) -> None:
        self.name, self._trainer, self._noise, self._change = noise.name, trainer, noise, change

    def draw(self, step: int, count: int) -> Tensor:
        return self._change(self._trainer, step, self._noise.draw(step, count).clone())

    def pieces(self, step: int, count: int) -> Iterator[Tensor]:
        return iter(self.draw(step, count).split(1 << 15))

    def distance(self, total_draws: int) -> float:
        return self._noise.distance(total_draws)


def _on_noise(patch: Patch, change: Callable[[Trainer, int, Tensor], Tensor]) -> None:
    """Lets every step's noise vector go through ``change``, which knows the trainer."""
    original = Trainer.__post_init__

    def built(self: Trainer) -> None:
        original(self)
        if self.noise is not None:
            object.__setattr__(self, "noise", _Changed(self, self.noise, change))

    patch(Trainer, "__post_init__", built)


Factor = Callable[[Tensor, ClippingRule, int], Tensor]


def _on_factor(patch: Patch, change: Callable[[Factor, Tensor, ClippingRule, int], Tensor]) -> None:
    """Puts ``change`` in the place of the clip factor of the bookkeeping engine."""
    original = engine_module.clip_factor
    patch(engine_module, "clip_factor", lambda norm, rule, size: change(original, norm, rule, size))


def _on_draw(patch: Patch, change: Callable[[PoissonSampler, int, Tensor], Tensor]) -> None:
    original = PoissonSampler.draw
    patch(PoissonSampler, "draw", lambda self, step: change(self, step, original(self, step)))


def _on_address(patch: Patch, address: Callable[[Purpose, int], tuple[int, int]]) -> None:
    """Lets streams begin at the address that a function of purpose and step gives."""
    original = Keystream.open

    def opened(self: Keystream, purpose: Purpose, step: int) -> Stream:
        original(self, purpose, step)
        used_purpose, used_step = address(purpose, step)
        prefix = used_purpose.to_bytes(2, "big") + self._rank.to_bytes(2, "big") + used_step.to_bytes(6, "big")
        return Stream(Cipher(self._cipher, modes.CTR(prefix + bytes(6))))

    patch(Keystream, "open", opened)


def _on_sum(patch: Patch, change: Callable[[Trainer, int, StepReport, DrawSum], None]) -> None:
    """Calls ``change`` with every draw's clipped sum, before its noise."""
    original = Trainer._clipped_sum

    def clipped_sum(self: Trainer, step: int, total: DrawSum) -> StepReport:
        report = original(self, step, total)
        change(self, step, report, total)
        return report

    patch(Trainer, "_clipped_sum", clipped_sum)


def _on_layout(patch: Patch, change: Callable[[PhysicalBatch], PhysicalBatch]) -> None:
    original = batches_module._gather
    patch(batches_module, "_gather", lambda *args: change(original(*args)))
