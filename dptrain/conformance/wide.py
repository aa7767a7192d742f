"""Noise and release of a model of a hundred thousand parameters, whatever the user's is: pieces, edges, compiled ways.

Noise comes in pieces that fit a cache, and sums lie parameter by parameter; what goes wrong where one ends and the
other does not shows only where there are several of each. The last pass is compared number by number, noise by laws.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from dptrain.conformance.observe import tell_noise
from dptrain.conformance.places import ALPHA, never_twice
from dptrain.conformance.regular import Law, chi_square, least, regularity
from dptrain.conformance.stand import Result, Stand
from dptrain.data.batches import PhysicalBatch
from dptrain.errors import ConfigError
from dptrain.gradients.draw_sum import DrawSum
from dptrain.gradients.protocol import UnitStats
from dptrain.keystream import Keystream
from dptrain.noise.ahead import NoiseAhead
from dptrain.noise.device import DeviceNoise
from dptrain.noise.fast import FastNoise
from dptrain.noise.protocol import Noise
from dptrain.noise.secure import SecureNoise
from dptrain.privacy.grid import grid_step
from dptrain.training.assemble import worth_compiling

SHAPES = ((257, 300), (5,), (1, 1), (40_000,), (33,))
"""Of the parameters; no piece ends where one of them does."""
STEPS = 4


class _Given:
    """An engine that hands over sums that it was given: in parts, or added to a flat vector."""

    name, float_class = "given", "measured"

    def __init__(self, parts: list[Tensor]) -> None:
        self.parts = parts

    def add_clipped_sum(self, batch: PhysicalBatch, total: Tensor) -> UnitStats:
        total += torch.cat([part.reshape(-1) for part in self.parts]).double()
        return UnitStats(torch.zeros(1), torch.zeros(1))


class _InParts(_Given):
    def clipped_parts(self, batch: PhysicalBatch) -> tuple[list[Tensor], UnitStats]:
        return [part.clone() for part in self.parts], UnitStats(torch.zeros(1), torch.zeros(1))


def wide(stand: Stand) -> Iterator[Result]:
    """The release, and the noise, by plain loops, by compiled ones where the run takes them, and drawn by a thread."""
    told, wrong, blocks = list[str](), list[str](), list[np.ndarray]()
    scale_of, grid = 1.0, None
    if stand.plan.noise == "secure":
        grid = grid_step(stand.clip, stand.slack, sum(int(np.prod(shape)) for shape in SHAPES))
        scale_of = grid
    try:
        ways = _sources(stand, grid)
    except ConfigError:
        yield Result("wide release", None, "this noise is declined at so many parameters")
        return
    for name, (noise, compiled) in ways.items():
        found, drawn = _released(noise, compiled, grid)
        wrong += [f"{name}: {found}"] if found else []
        blocks += drawn
        told.append(name)
    says = f"(sum + noise) / divisor, number by number, over {STEPS} steps of {blocks[0].size} parameters each"
    yield Result("wide release", not wrong, "; ".join(wrong) if wrong else f"{says}: {', '.join(told)}")
    values = np.stack(blocks)
    normals = values * (scale_of / stand.mechanism.noise_std)
    laws = regularity(normals, "steps")
    laws += [
        _deviation(normals[i : i + STEPS], name) for i, name in zip(range(0, len(blocks), STEPS), ways, strict=True)
    ]
    if grid is not None:
        laws += [
            _last_bits(values[i : i + STEPS], name) for i, name in zip(range(0, len(blocks), STEPS), ways, strict=True)
        ]
    yield least("noise, wide", laws, ALPHA, f"{values.shape[0]} steps of {values.shape[1]} values")
    again = never_twice(values, stand.mechanism.noise_std / scale_of, grid is not None)
    yield Result("noise, wide, never twice", again.passed, again.says)


def _sources(stand: Stand, grid: float | None) -> dict[str, tuple[Noise, bool]]:
    std, made = stand.mechanism.noise_std, dict[str, tuple[Noise, bool]]()
    for compiled in (False, True) if worth_compiling(stand.count * stand.asked.steps) else (False,):
        name = "compiled" if compiled else "plain"
        fast = FastNoise(Keystream(), std, compiled=compiled)
        made[name] = (fast if grid is None else SecureNoise(Keystream(), std / grid, compiled=compiled), compiled)
    if grid is not None:
        made["by a thread"] = (NoiseAhead(SecureNoise(Keystream(), std / grid)), False)
        if stand.config.execution.noise_on_device:
            device = next(stand.module.parameters()).device
            made["on the device"] = (DeviceNoise(Keystream(), std / grid, device), False)
    return made


def _released(noise: Noise, compiled: bool, grid: float | None) -> tuple[str | None, list[np.ndarray]]:
    """What is wrong with the gradients that are released, and the noise that they hold."""
    generator = torch.Generator().manual_seed(2)
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    total, kept = DrawSum(parameters, grid is not None, compiled), list[Tensor]()
    tell_noise(noise, lambda step, vector: kept.append(vector))
    count, wrong = sum(p.numel() for p in parameters), None
    size, divisor = (1.0 if grid is None else 1e6), 37.0
    nothing = PhysicalBatch(torch.zeros(1, 1), torch.zeros(1), torch.zeros(1, dtype=torch.int64), torch.ones(1))
    for step in range(STEPS):
        if isinstance(noise, NoiseAhead):
            noise.begin(step, count)
        parts = [size * torch.randn(shape, generator=generator) for shape in SHAPES]
        engine = (_InParts if step % 2 else _Given)(parts)
        total.clear()
        times = (1, 1, 2, 0)[step]
        for _ in range(times):
            total.add(engine, nothing)  # type: ignore[arg-type]
        exact = times * torch.cat([part.reshape(-1) for part in parts]).double()
        total.release(noise.pieces(step, count), 1.0 / divisor)
        if len(kept) != step + 1:
            return f"{len(kept)} noise vectors for {step + 1} steps", [np.zeros(count)] * STEPS
        wanted = ((exact.round() if grid is not None else exact) + kept[-1]) / divisor
        found = torch.cat(
            [torch.full((p.numel(),), torch.nan) if p.grad is None else p.grad.reshape(-1) for p in parameters]
        )
        off = (found.double() - wanted).abs() / (wanted.abs() + (exact.abs() + kept[-1].abs()) / divisor + 1e-12)
        bad = torch.nonzero(~(off < 1e-6)).flatten()
        if len(bad) and wrong is None:
            wrong = f"step {step + 1}: {len(bad)} of {count} gradients are other than that, the first at {int(bad[0])}"
    return wrong, [vector.numpy() for vector in kept]


def _deviation(normals: np.ndarray, name: str) -> Law:
    """The deviation of one source by itself."""
    return chi_square(f"deviation, {name}", float((normals**2).sum()), normals.size)


def _last_bits(values: np.ndarray, name: str) -> Law:
    """The last four bits of whole numbers are uniform: noise kept in fewer bits has none there, and the sum's show.

    A rounded Gaussian of deviation S is uniform modulo 16 within 2 exp(-2 (pi S / 16)^2) (Poisson summation), which is
    nothing for the S of any grid.
    """
    from scipy.stats import chisquare

    counts = np.bincount((values.ravel().astype(np.int64) & 15), minlength=16)
    return Law(f"last bits, {name}", float(chisquare(counts).pvalue))
