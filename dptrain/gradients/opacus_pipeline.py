"""Opacus' own training pipeline around a model, watched: for the conformance checks alone, never for a run.

``PrivacyEngine.make_private`` is used as its documentation shows it; what is watched is what the sampler announces,
what the optimizer sums, and what it hands on.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dptrain.gradients.protocol import RowLoss


@dataclass
class OpacusStep:
    """One call of the underlying optimizer."""

    announced: list[list[int]]
    """Draws that the sampler handed out since the step before; the last is this step's."""
    summed: Tensor
    """(D,) float64: clipped sum before noise."""
    released: Tensor
    """(D,) float64: gradient, times the divisor that Opacus used."""
    parameters: list[Tensor]
    """As they were when the step was taken, one a trainable parameter."""


@dataclass
class OpacusRun:
    """A private training of 1.6's public interface over rows in memory; one row is one unit.

    Args:
        module: copied.
        row_loss: its mean over a batch is what is differentiated.
        inputs, targets: (N, ...) rows.
        batch_size: of the data loader, from which Opacus takes rate and divisor.
        clipping_norm, noise_multiplier: of ``make_private``.
        poisson: its ``poisson_sampling``.
    """

    module: nn.Module
    row_loss: RowLoss
    inputs: Tensor
    targets: Tensor
    batch_size: int
    clipping_norm: float
    noise_multiplier: float
    poisson: bool = True
    steps: list[OpacusStep] = field(default_factory=list)
    announced: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        from opacus import PrivacyEngine

        model = deepcopy(self.module).train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        loader = DataLoader(
            TensorDataset(self.inputs, self.targets), batch_size=self.batch_size, shuffle=not self.poisson
        )
        with _quiet():
            self.privacy = PrivacyEngine(accountant="rdp")
            made: Any = self.privacy.make_private(  # a union of everything that it can return, by its annotations
                module=model,
                optimizer=optimizer,
                data_loader=loader,
                noise_multiplier=self.noise_multiplier,
                max_grad_norm=self.clipping_norm,
                poisson_sampling=self.poisson,
            )
        self.model: Any = made[0]
        self.optimizer: Any = made[1]
        self.loader: Any = made[2]
        self._accounted = self.optimizer.step_hook
        self.optimizer.attach_step_hook(self._note)
        self._announce(self.loader.batch_sampler)

    @property
    def divisor(self) -> float:
        """What Opacus divides by."""
        return float(self.optimizer.expected_batch_size)

    @property
    def rate(self) -> float:
        """The sampling rate that Opacus uses."""
        return float(getattr(self.loader.batch_sampler, "sample_rate", 1 / len(self.loader)))

    @property
    def accounted(self) -> int:
        """Steps that the accountant has charged."""
        return sum(entry[2] for entry in self.privacy.accountant.history)

    def epsilon(self, delta: float) -> float:
        """The accountant's answer so far."""
        with _quiet():
            return float(self.privacy.get_epsilon(delta))

    def epoch(self, largest: int | None = None, stop_after: int | None = None) -> None:
        """One pass over the loader, as in Opacus' tutorials.

        Args:
            largest: rows of a physical batch under ``BatchMemoryManager``; None: without it.
            stop_after: physical batches after which the loop is left with ``break``.
        """
        if largest is None:
            self._pass(self.loader, stop_after)
            return
        from opacus.utils.batch_memory_manager import BatchMemoryManager

        with BatchMemoryManager(
            data_loader=self.loader, max_physical_batch_size=largest, optimizer=self.optimizer
        ) as loader:
            self._pass(loader, stop_after)

    def _pass(self, loader: Any, stop_after: int | None) -> None:
        with _quiet():
            for done, (inputs, targets) in enumerate(loader, start=1):
                self.optimizer.zero_grad()
                self.row_loss(self.model(inputs), targets).mean().backward()
                self.optimizer.step()
                if done == stop_after:
                    break

    def _announce(self, sampler: Any) -> None:
        """Makes the sampler tell which draws it hands out; its class stays what Opacus asks for."""
        told, original = self.announced, type(sampler)

        class Telling(original):
            def __iter__(self) -> Iterator[list[int]]:
                for drawn in super().__iter__():
                    told.append(list(drawn))
                    yield drawn

        sampler.__class__ = Telling

    def _note(self, optimizer: Any) -> None:
        parameters: list[Any] = list(optimizer.params)
        scale = self.divisor * optimizer.accumulated_iterations
        seen = sum(len(step.announced) for step in self.steps)
        self.steps.append(
            OpacusStep(
                announced=self.announced[seen:],
                summed=torch.cat([p.summed_grad.detach().reshape(-1).double() for p in parameters]),
                released=torch.cat([p.grad.detach().reshape(-1).double() for p in parameters]) * scale,
                parameters=[p.detach().clone() for p in parameters],
            )
        )
        if self._accounted is not None:
            self._accounted(optimizer)


@contextmanager
def _quiet() -> Iterator[None]:
    """Opacus' advice on secure random numbers and on its own hooks, which the report says better."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield
