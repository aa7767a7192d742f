"""The clipped sum of one draw while it grows, and its release as gradients.

Two forms. Engines that add to a flat float64 vector add to it. An engine that computes the sum of a physical batch in
one piece a parameter (``SumsInParts``) leaves those pieces; they are added up in float64 only when a second physical
batch comes, so that the common draw of one batch is touched once, where it lies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dptrain.data.batches import PhysicalBatch
from dptrain.gradients.protocol import Engine, UnitStats


@runtime_checkable
class SumsInParts(Protocol):
    """An engine that can hand over a batch's clipped sum parameter by parameter."""

    def clipped_parts(self, batch: PhysicalBatch) -> tuple[list[Tensor], UnitStats]:
        """One tensor a trainable parameter, in its shape, that the caller may overwrite; unit as in ``Engine``."""
        ...


class DrawSum:
    """The running clipped sum of one draw.

    Guarantee: what is released is the sum of what the engine gave, in float64 across physical batches, rounded once
    to whole grid steps where there is a grid, plus the noise. (An engine of the ``exact`` class gives whole numbers,
    which rounding leaves as they are. Rounding two sums that differ in one unit moves their difference by at most one
    step a coordinate, sqrt(D) steps in norm, which ``grid_step`` keeps within half of the sensitivity's slack.)

    Args:
        parameters: what is trained, in the order of the flat vector.
        on_grid: whether sums are in grid steps.
        compiled: whether the last pass over them may be numba's, which must be installed; the same numbers.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], on_grid: bool, compiled: bool = False) -> None:
        self._parameters = parameters
        self._compiled = compiled and parameters[0].device.type == "cpu"
        self._on_grid = on_grid
        self._sizes = [p.numel() for p in parameters]
        self._parts: list[Tensor | None] = [None] * len(parameters)
        self._flat: Tensor | None = None
        self._is_flat = False

    def clear(self) -> None:
        """Begins a new draw."""
        self._parts = [None] * len(self._parameters)
        self._is_flat = False

    def add(self, engine: Engine, batch: PhysicalBatch, first: int = 0, last: int | None = None) -> UnitStats:
        """Adds one physical batch's clipped sum.

        Args:
            engine: of the parameters from ``first`` up to, not including, ``last``; of all of them, left out.
            batch: on the parameters' device.
            first, last: places in the list of parameters.
        """
        if not isinstance(engine, SumsInParts):
            return engine.add_clipped_sum(batch, self._flat_of(first, last))
        parts, stats = engine.clipped_parts(batch)
        if not self._is_flat and all(part is None for part in self._parts[first:last]):
            self._parts[first:last] = parts
        else:
            add_parts(parts, self._flat_of(first, last))
        return stats

    def _flat_of(self, first: int, last: int | None) -> Tensor:
        """Those parameters' piece of the flat vector."""
        begin = sum(self._sizes[:first])
        return self.flat()[begin : begin + sum(self._sizes[first:last])]

    def flat(self) -> Tensor:
        """The sum as one float64 vector (D,), which may be added to in place."""
        if not self._is_flat:
            if self._flat is None:
                self._flat = torch.empty(sum(self._sizes), dtype=torch.float64, device=self._parameters[0].device)
            self._flat.zero_()
            self._is_flat = True
            for part, piece in zip(self._parts, self._flat.split(self._sizes), strict=True):
                if part is not None:
                    piece += part.reshape(-1)
            self._parts = [None] * len(self._parameters)
        return self._flat if self._flat is not None else torch.empty(0)

    def release(self, noise: Iterable[Tensor] | None, scale: float) -> None:
        """Sets every parameter's ``grad`` to (sum + noise) times ``scale``.

        Args:
            noise: consecutive pieces of the (D,) noise vector; None only without privacy, or where the noise is
                already in the sum.
            scale: what brings the sum to the gradient's unit, over the public divisor.
        """
        sources = self.flat().split(self._sizes) if all(part is None for part in self._parts) else self._parts
        blocks = _Blocks(noise) if noise is not None else None
        for parameter, part in zip(self._parameters, sources, strict=True):
            source = torch.zeros_like(parameter, dtype=torch.float64) if part is None else part  # an empty draw
            wide = source.dtype == torch.float64 and parameter.dtype != torch.float64
            grad = torch.empty_like(parameter, memory_format=torch.contiguous_format) if wide else source
            _release(source.reshape(-1), grad.view(-1), blocks, scale, self._on_grid, self._compiled)
            parameter.grad = grad.view(parameter.shape)
        self.clear()


def add_parts(parts: Sequence[Tensor], flat: Tensor) -> None:
    """Adds one tensor a parameter to the flat float64 vector in place."""
    offset = 0
    for part in parts:
        flat[offset : offset + part.numel()] += part.reshape(-1)
        offset += part.numel()


class _Blocks:
    """Consecutive pieces, handed out in whatever lengths are asked for."""

    def __init__(self, pieces: Iterable[Tensor]) -> None:
        self._pieces: Iterator[Tensor] = iter(pieces)
        self._left = torch.empty(0)

    def next(self, most: int) -> Tensor:
        """The next entries: at least one and at most ``most``."""
        if len(self._left) == 0:
            self._left = next(self._pieces)
        if len(self._left) <= most:
            piece, self._left = self._left, torch.empty(0)
        else:
            piece, self._left = self._left[:most], self._left[most:]
        return piece


def _release(
    source: Tensor, grad: Tensor, blocks: _Blocks | None, scale: float, on_grid: bool, compiled: bool = False
) -> None:
    """grad = (source + noise) scale, a piece of noise at a time, so that all stays in cache; may be in place."""
    if blocks is None:
        grad.copy_(source.round() if on_grid else source).mul_(scale)
        return
    done = 0
    while done < len(source):
        noise = blocks.next(len(source) - done)
        stop = done + len(noise)
        _release_piece(source[done:stop], noise.to(source.device), scale, grad[done:stop], on_grid, compiled)
        done = stop


def _release_piece(source: Tensor, noise: Tensor, scale: float, grad: Tensor, on_grid: bool, compiled: bool) -> None:
    if compiled and on_grid and (noise.dtype, grad.dtype) == (torch.float64, torch.float32):
        from dptrain.gradients.compiled import released

        released(source, noise, scale, grad)
    elif compiled and not on_grid and {source.dtype, noise.dtype, grad.dtype} == {torch.float32}:
        from dptrain.gradients.compiled import added

        added(source, noise, scale, grad)
    elif on_grid:  # whole numbers beyond 2^24 need float64
        grad[:] = source.to(torch.float64, copy=True).round_().add_(noise).mul_(scale)
    elif grad.dtype == source.dtype:
        torch.add(source, noise, out=grad).mul_(scale)
    else:
        grad[:] = (source + noise) * scale
