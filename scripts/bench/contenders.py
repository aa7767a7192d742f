"""What the benchmark measures: a plain step, and the peers' and dptrain's DP steps, behind one small interface."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .workloads import Workload, mean_loss

PEERS = {
    "opacus_hooks": "Opacus, per-row gradients by hooks, DPOptimizer",
    "opacus_ghost": "Opacus, ghost clipping, its own DP loss and optimizer",
    "fastdp": "fastDP, MixOpt book-keeping with the full origin list",
    "fastdp_no_origin": "fastDP, MixOpt book-keeping without ghost differentiation",
    "private_transformers": "private-transformers, ghost clipping",
    "opake": "opake, vmap of grad and its own noise",
}
"""Names of peers; every other name is an engine of dptrain."""


@dataclass(frozen=True)
class Settings:
    """How a contender runs.

    Attributes:
        noise: ``fast`` or ``secure`` (dptrain's; peers always make their own), or ``none``.
        clip: clipping norm C.
        unit_rows: consecutive rows that are one unit together; dptrain's engines only.
        sigma: noise multiplier of the peers.
        memory_limit: MiB that dptrain's engines may hold for the sum; negative: no limit.
        checkpoint: patterns of modules that dptrain's engine bookkeeping computes again, by commas.
        parts: physical batches that dptrain takes a step's rows in, as many whole units in each.
    """

    noise: str = "fast"
    clip: float = 1.0
    unit_rows: int = 1
    sigma: float = 1.0
    memory_limit: int = -1
    parts: int = 1
    checkpoint: str = ""


class Contender(Protocol):
    """One way to train one workload, with a model of its own."""

    model: torch.nn.Module

    def run(self, on_step: Callable[[], None]) -> None:
        """Takes steps, calling ``on_step()`` after each, until that raises."""
        ...

    def clipped_sum(self) -> dict[str, Tensor]:
        """The batch's clipped sum by parameter name, at the first weights and without noise."""
        ...


class Plain:
    """An ordinary PyTorch step: zero_grad, forward, mean loss, backward, optimizer."""

    def __init__(self, workload: Workload, settings: Settings, inputs: Tensor, targets: Tensor) -> None:
        self.model = workload.model()
        self._optimizer = workload.optimizer(self.model)
        self._inputs, self._targets = inputs, targets

    def step(self) -> None:
        """One step."""
        self._optimizer.zero_grad()
        mean_loss(self.model(self._inputs), self._targets).backward()
        self._optimizer.step()

    def run(self, on_step: Callable[[], None]) -> None:
        """See ``Contender``."""
        while True:
            self.step()
            on_step()

    def clipped_sum(self) -> dict[str, Tensor]:
        """Plain training clips nothing."""
        raise ValueError("plain training has no clipped sum")


def build(name: str, workload: Workload, settings: Settings, inputs: Tensor, targets: Tensor) -> Contender:
    """The contender of that name on that batch: ``plain``, a peer, or an engine of dptrain.

    Modules are imported here and not before, since no environment has all of them.
    """
    if name == "plain":
        return Plain(workload, settings, inputs, targets)
    if name.startswith("opacus_") and name in PEERS:
        module = importlib.import_module(".peer_opacus", __package__)
    elif name in PEERS:
        module = importlib.import_module(".peers", __package__)
    else:
        module = importlib.import_module(".dptrain_engine", __package__)
    return module.build(name, workload, settings, inputs, targets)
