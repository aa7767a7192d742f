"""Opacus itself as a contender, by its own documented parts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .contenders import Settings
from .workloads import Workload, mean_loss


class Opacus:
    """Opacus' wrapped module and optimizer; ``opacus_ghost`` with its DP loss, which runs the second backward."""

    def __init__(self, name: str, workload: Workload, settings: Settings, inputs: Tensor, targets: Tensor) -> None:
        from opacus import GradSampleModule, GradSampleModuleFastGradientClipping
        from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
        from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

        self.model = workload.model(for_peer=True)
        self._inputs, self._targets = inputs, targets
        inner = workload.optimizer(self.model)
        self._wrapped: Any
        self._optimizer: Any
        self._loss: Callable[[Tensor, Tensor], Any] = mean_loss
        if name == "opacus_hooks":
            self._wrapped = GradSampleModule(self.model, batch_first=True, loss_reduction="mean")
            kind: Any = DPOptimizer
        else:
            ghost: Any = GradSampleModuleFastGradientClipping  # its annotation of max_grad_norm is too narrow
            self._wrapped = ghost(
                self.model,
                batch_first=True,
                loss_reduction="mean",
                max_grad_norm=settings.clip,
                use_ghost_clipping=True,
            )
            kind = DPOptimizerFastGradientClipping
        self._optimizer = kind(
            inner,
            noise_multiplier=settings.sigma,
            max_grad_norm=settings.clip,
            expected_batch_size=len(inputs),
            loss_reduction="mean",
        )
        if name == "opacus_ghost":
            self._criterion = DPLossFastGradientClipping(
                self._wrapped, self._optimizer, nn.CrossEntropyLoss(), loss_reduction="mean"
            )
            self._loss = self._dp_loss

    def _dp_loss(self, outputs: Tensor, targets: Tensor) -> Any:
        """Opacus' loss reads rows of tokens, or of pixels, through ``shape``."""
        if outputs.dim() == 4:  # (R, K, H, W)
            outputs, targets = outputs.flatten(2).transpose(1, 2), targets.flatten(1)
        if outputs.dim() == 3:
            return self._criterion(outputs.flatten(0, 1), targets.flatten(), shape=targets.shape)
        return self._criterion(outputs, targets)

    def step(self) -> None:
        """One step."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
            self._optimizer.zero_grad()
            self._loss(self._wrapped(self._inputs), self._targets).backward()
            self._optimizer.step()

    def run(self, on_step: Callable[[], None]) -> None:
        """See ``Contender``."""
        while True:
            self.step()
            on_step()

    def clipped_sum(self) -> dict[str, Tensor]:
        """See ``Contender``: what the optimizer was given, times the divisor."""
        self.step()
        return {
            name: p.grad.detach() * len(self._inputs)
            for name, p in self.model.named_parameters()
            if p.requires_grad and p.grad is not None
        }


def build(name: str, workload: Workload, settings: Settings, inputs: Tensor, targets: Tensor) -> Opacus:
    """``opacus_hooks`` or ``opacus_ghost``."""
    return Opacus(name, workload, settings, inputs, targets)
