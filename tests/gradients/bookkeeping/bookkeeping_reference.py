"""Holds the engine ``bookkeeping`` against float64 autograd, one unit at a time. Shared by the tests beside it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dptrain.data.batches import PhysicalBatch
from dptrain.errors import ConfigError
from dptrain.gradients.bookkeeping.engine import BookkeepingEngine
from dptrain.gradients.loop import LoopEngine
from dptrain.gradients.protocol import ClippingRule, EngineSettings, RowLoss, UnitStats, trainable

LAYOUTS = {
    "one row": ([0, 1, 2, 3, 4], [1.0, 1.0, 1.0, 1.0, 1.0]),
    "padded": ([0, 1, 2, 3, 4], [1.0, 1.0, 1.0, 0.0, 0.0]),
    "equal": ([0, 0, 1, 1, 2, 2], [0.5, 0.5, 0.5, 0.5, 0.5, 0.5]),
    "unequal": ([0, 1, 1, 1, 2, 5], [1.0, 0.25, 0.5, 0.25, 1.0, 0.0]),
    "mixed up": ([3, 0, 3, 1, 0, 5], [0.5, 0.5, 0.5, 1.0, 0.5, 0.0]),
}
"""Ways in which rows belong to units: slot and weight of each row."""
COMPILED = ("gram_loops", "tiles", "tiles, again", "pictures, again")
"""Ways that numba must be there for."""


def square_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """One number a row that every output enters with a weight of its own."""
    flat = outputs.flatten(1)
    ramp = torch.linspace(-1.0, 2.0, flat.shape[1], dtype=flat.dtype)
    return (flat * ramp).sum(1) + 0.3 * (flat - targets[:, None].to(flat.dtype)).square().mean(1)


def batch_of(inputs: Tensor, layout: str = "one row") -> PhysicalBatch:
    """As many of ``inputs`` as the layout has rows."""
    unit, weight = LAYOUTS[layout]
    assert len(inputs) >= len(unit)
    targets = torch.arange(len(unit)) % 3
    return PhysicalBatch(inputs[: len(unit)], targets, torch.tensor(unit), torch.tensor(weight))


class Applied(nn.Module):
    """A function of the input and of parameters or layers given by name."""

    def __init__(self, apply: Callable[[Any, Tensor], Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.apply_to = apply
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.apply_to(self, x)


def by_way(way: str) -> Callable[[BookkeepingEngine], None]:
    """Makes an engine compute every contribution in one way, wherever a use has it."""
    compiled = way in COMPILED
    if compiled:
        pytest.importorskip("numba", reason="needs the extra 'fast'")

    class Always(dict[Any, str]):
        def get(self, key: Any, default: Any = None) -> Any:
            return super().get(key, way)

        def __missing__(self, key: Any) -> str:
            return way

    def prepare(engine: BookkeepingEngine) -> None:
        engine.chooser.picks = Always()
        engine.chooser.compiled = compiled

    return prepare


@dataclass
class Found:
    """A clipped sum with its statistics."""

    total: Tensor
    stats: UnitStats


def run(engine: BookkeepingEngine | LoopEngine, module: nn.Module, batch: PhysicalBatch) -> Found:
    """The clipped sum of one batch."""
    total = torch.zeros(sum(p.numel() for p in trainable(module).values()), dtype=torch.float64)
    return Found(total, engine.add_clipped_sum(batch, total))


def engine_of(module: nn.Module, loss: RowLoss = square_loss, clip: float = 1.0) -> BookkeepingEngine:
    """The engine under test, without a grid."""
    return BookkeepingEngine(module, loss, ClippingRule(clip, None), EngineSettings())


def truth(module: nn.Module, batch: PhysicalBatch, loss: RowLoss = square_loss, clip: float = 1.0) -> Found:
    """Float64, one row at a time."""
    precise = copy.deepcopy(module).double()
    inputs = batch.inputs.double() if batch.inputs.is_floating_point() else batch.inputs
    rows = PhysicalBatch(inputs, batch.targets, batch.unit, batch.weight)
    return run(LoopEngine(precise, loss, ClippingRule(clip, None), EngineSettings()), precise, rows)


def agree(
    module: nn.Module,
    batch: PhysicalBatch,
    loss: RowLoss = square_loss,
    clip: float | None = None,
    prepare: Callable[[BookkeepingEngine], None] | None = None,
    rough: float = 1e-5,
) -> BookkeepingEngine:
    """Asserts that norms and the clipped sum are those of float64; gives the engine.

    Norms: not below the true ones by more than 1e-6 of themselves plus what float32 activations cost (``rough`` is
    the bar for both, downwards and upwards); the sum within ``rough`` of its units' number times C. The clipping norm
    lies in the middle of the units' norms where none is given, so that some are clipped and some are not.
    """
    if clip is None:
        norms = truth(module, batch, loss).stats.norms
        live = norms[norms > 0]
        clip = float(live.median()) * 1.01 if len(live) else 1.0
    engine = engine_of(module, loss, clip)
    if prepare is not None:
        prepare(engine)
    expected = truth(module, batch, loss, clip)
    for _ in range(2):  # the first pass times the ways, the second takes the pick
        found = run(engine, module, batch)
        assert torch.allclose(found.stats.norms, expected.stats.norms, rtol=rough, atol=1e-12), (
            found.stats.norms / expected.stats.norms - 1
        )
        assert torch.allclose(found.stats.losses.double(), expected.stats.losses.double(), rtol=1e-4, atol=1e-4)
        error = float((found.total - expected.total).norm())
        assert error <= rough * max(float(expected.total.norm()), clip), error / clip
    return engine


def contributions_agree(module: nn.Module, batch: PhysicalBatch, loss: RowLoss = square_loss) -> None:
    """Asserts that reported norms are not below those of the very sums added for a unit alone, by more than 1e-6."""
    engine = engine_of(module, loss, 1e9)
    norms = run(engine, module, batch).stats.norms
    for slot in torch.unique(batch.unit).tolist():
        weight = torch.where(batch.unit == slot, batch.weight, 0.0)
        if bool(weight.any()):
            alone = run(engine, module, PhysicalBatch(batch.inputs, batch.targets, batch.unit, weight))
            true = float(alone.total.norm())
            assert float(norms[slot]) >= true * (1 - 1e-6), float(norms[slot]) / true - 1


def refused(module: nn.Module, batch: PhysicalBatch, match: str, loss: Any = square_loss) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        run(engine_of(module, loss), module, batch)
    assert "\n" not in str(caught.value)
