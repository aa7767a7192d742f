"""What several of the mistakes are made with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from torch import Tensor

import dptrain.gradients.bookkeeping.engine as engine_module
from dptrain.gradients.bookkeeping.contribution import Contribution
from dptrain.gradients.bookkeeping.engine import BookkeepingEngine
from dptrain.gradients.bookkeeping.groups import Groups
from dptrain.gradients.bookkeeping.tape import Tape
from dptrain.gradients.draw_sum import DrawSum
from dptrain.gradients.protocol import ClippingRule
from dptrain.keystream import Keystream, Purpose, Stream
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


Factor = Callable[[Tensor, ClippingRule, int], Tensor]


def on_factor(patch: Patch, change: Callable[[Factor, Tensor, ClippingRule, int], Tensor]) -> None:
    """Puts ``change`` in the place of the clip factor of the bookkeeping engine."""
    original = engine_module.clip_factor
    patch(engine_module, "clip_factor", lambda norm, rule, size: change(original, norm, rule, size))


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


def on_released(patch: Patch, change: Callable[[Trainer, int], None]) -> None:
    """Calls ``change`` behind every release, before the optimizer."""
    original = Trainer._release

    def release(self: Trainer, step: int, total: DrawSum) -> None:
        original(self, step, total)
        change(self, step)

    patch(Trainer, "_release", release)


def on_address(patch: Patch, prefix: Callable[[Purpose, int, int], bytes]) -> None:
    """Lets streams begin at the 16-byte counter that a function of purpose, rank and step gives."""
    original = Keystream.open

    def opened(self: Keystream, purpose: Purpose, step: int) -> Stream:
        original(self, purpose, step)
        return Stream(Cipher(self._cipher, modes.CTR(prefix(purpose, self._rank, step))))

    patch(Keystream, "open", opened)
