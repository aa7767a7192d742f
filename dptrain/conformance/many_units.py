"""Physical batches of very many units: more than a byte counts, or two, or any pass of an engine holds.

Slots, counters and buffers have a width somewhere. What happens beyond it needs no large model to show: two small ones,
one of numbers and one of tokens, with units of one to three rows in any order, go the whole way from rows to the sum of
a draw, and every unit's gradient is computed apart in float64.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from dptrain.conformance.layers import MOST_WAYS, RUNS_ALL, ByTurns, loss
from dptrain.conformance.stand import NORM_TOLERANCE, Result, Stand
from dptrain.data.source import Rows
from dptrain.errors import ConfigError, one_line
from dptrain.gradients.bookkeeping.engine import BookkeepingEngine
from dptrain.gradients.draw_sum import DrawSum
from dptrain.keystream import Keystream
from dptrain.training.assemble import build_trainer
from dptrain.training.loop import Trainer

MANY, FEWER = 70_001, 701
"""Units of a draw: more than 2^16; more than 2^9, where an engine takes one after the other."""
PART = 9_001
"""Rows of a physical batch where the draw comes in several."""
OFF = 0.25
"""What the whole sum may be off by, over C: a unit that is lost, doubled or joined to another is off by more."""
SLACK = 1e-3
"""s of these runs: rounding 70,001 units to its grid moves their sum by some 0.04 C."""
WORDS, LONG, WIDE, CLASSES = 7, 3, 3, 2


class _Table(nn.Module):
    """The mean of a few tokens."""

    takes_ids = True

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(WORDS, 2), nn.Linear(2, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(torch.tanh(self.table(ids)).mean(1))


def many_units(stand: Stand) -> Result:
    """Sum and norms of a draw of all units, in one physical batch and in several; by every way that the engine has."""
    name, told, declined = "many units", list[str](), list[str]()
    for which in ("numbers", "tokens"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # vmap tells what it does slowly
                found = list(_Case.of(stand, which).compared())
        except ConfigError:
            declined.append(which)
            continue
        except Exception as error:
            if not stand.config.clipping.engine.startswith(RUNS_ALL):  # torch's or Opacus' own limits
                declined.append(which)
                continue
            return Result(name, False, one_line(f"{which}: ends in {type(error).__name__}: {error}")[:160])
        wrong = [one for one in found if one.wrong]
        if wrong:
            return Result(name, False, f"{which}: {wrong[0].wrong}")
        told.append(f"{which}, {len(found)} sums, off by at most {max(one.off for one in found):.1e} C in all")
    if not told:
        return Result(name, None, "the engine declines both small models")
    says = f"{_units(stand)} units in a draw: {'; '.join(told)} (tolerance {OFF})"
    return Result(name, True, says + (f"; declined: {', '.join(declined)}" if declined else ""))


def _units(stand: Stand) -> int:
    return FEWER if stand.config.clipping.engine == "loop" else MANY


@dataclass(frozen=True)
class _Sum:
    """What one sum was off by, over C, and what is wrong with it."""

    off: float
    wrong: str | None


@dataclass(frozen=True)
class _Case:
    """One of the small models, with rows and what every unit ought to add.

    Attributes:
        norms: (U,) float64, ascending.
        clip: C, their median.
        wanted: (D,) float64 clipped sum of all units.
    """

    stand: Stand
    module: nn.Module
    rows: Rows
    norms: Tensor
    clip: float
    wanted: Tensor

    @classmethod
    def of(cls, stand: Stand, which: str) -> _Case:
        """Always the same."""
        wide, units = stand.config.execution.dtype == "float64", _units(stand)
        generator = torch.Generator().manual_seed(31)
        sizes = 1 if stand.config.clipping.engine == "opacus_ghost" else 1 + torch.arange(units) % 3
        unit = torch.arange(units).repeat_interleave(torch.as_tensor(sizes).expand(units))
        unit = unit[torch.randperm(len(unit), generator=generator)]
        with torch.random.fork_rng([]):
            torch.manual_seed(32)
            module = _Table() if which == "tokens" else nn.Sequential(nn.Linear(WIDE, 2), nn.Tanh(), nn.Linear(2, 2))
        if which == "tokens":
            inputs = torch.randint(WORDS, (len(unit), LONG), generator=generator)
        else:
            inputs = torch.randn(len(unit), WIDE, generator=generator)
        module, inputs = (
            (module.double(), inputs.double() if which == "numbers" else inputs) if wide else (module, inputs)
        )
        rows = Rows(inputs, torch.randint(CLASSES, (len(unit),), generator=generator), unit)
        gradients = unit_gradients(module, rows)
        norms = gradients.norm(dim=1)
        clip = float(norms.median())
        wanted = (gradients * (clip / norms.clamp(min=clip))[:, None]).sum(0)
        return cls(stand, module.train(), rows, norms.sort().values, clip, wanted)

    def compared(self) -> Iterator[_Sum]:
        """In one physical batch, by every way in turn; then in several."""
        for size in (len(self.rows), min(PART, len(self.rows) // 2)):
            turns, nth = 1, 0
            while nth < min(turns, MOST_WAYS):
                trainer = self.trainer(size)
                chooser = ByTurns(nth=nth)
                if isinstance(trainer.engine, BookkeepingEngine):
                    trainer.engine.chooser = chooser
                yield self.compare(trainer, f"{size} rows a physical batch, way {nth + 1}")
                turns, nth = (chooser.most if size == len(self.rows) else 1), nth + 1

    def trainer(self, size: int) -> Trainer:
        """What a run on these rows would be made of."""
        stand = self.stand
        execution = replace(
            stand.config.execution,
            physical_batch_size=size,
            dtype="float64" if self.is_wide else "float32",
            device="cpu",
            memory_limit=None,
        )
        config = replace(stand.config, execution=execution, selfcheck=replace(stand.config.selfcheck, enabled=False))
        mechanism = replace(stand.mechanism, clipping_norm=self.clip, sensitivity_slack=SLACK)
        plan = replace(stand.plan, mechanism=mechanism, public_size=self.rows.num_units)
        return build_trainer(config, plan, self.module, self.rows, loss, Keystream())

    def compare(self, trainer: Trainer, how: str) -> _Sum:
        """One draw of everybody."""
        total, norms = DrawSum(trainer.parameters, on_grid=trainer.grid is not None), list[Tensor]()
        total.clear()
        for batch in trainer.batches(torch.arange(self.rows.num_units)):
            stats = total.add(trainer.engine, batch)
            norms.append(stats.norms[torch.unique(batch.unit[batch.weight != 0])].double())
        told = torch.cat(norms).sort().values
        off = float((total.flat() * (trainer.grid or 1.0) - self.wanted).norm()) / self.clip
        if len(told) != len(self.norms):
            return _Sum(off, f"{how}: {len(told)} units are clipped where {len(self.norms)} were drawn")
        tolerance = NORM_TOLERANCE["float64" if self.is_wide else "float32"]
        low = float(((self.norms - told) / self.norms.clamp(min=1e-12)).max())
        if not low <= tolerance:  # if no norm is below the true one, none is of the sorted ones
            return _Sum(off, f"{how}: a norm is {low:.1e} below the true one (tolerance {tolerance:.0e})")
        if not (math.isfinite(off) and off <= OFF):
            return _Sum(off, f"{how}: the sum of {len(told)} units is {off:.1e} C off (tolerance {OFF})")
        return _Sum(off, None)

    @property
    def is_wide(self) -> bool:
        """Whether the engine computes in float64."""
        return self.stand.config.execution.dtype == "float64"


def unit_gradients(module: nn.Module, rows: Rows) -> Tensor:
    """(U, D) float64: the mean gradient of every unit's rows, in ``parameters`` order, by ``torch.func``.

    Args:
        module: small, as a gradient a row is held.
        rows: in any order.
    """
    state = {name: p.detach().double() for name, p in module.named_parameters()}

    def of_row(state: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(module, state, (x[None],)), y[None]).sum()

    inputs = rows.inputs.double() if rows.inputs.is_floating_point() else rows.inputs
    parts = vmap(grad(of_row), in_dims=(None, 0, 0))(state, inputs, rows.targets)
    flat = torch.cat([parts[name].flatten(1) for name in state], 1)
    counts = torch.bincount(rows.unit_id).double()
    of_units = torch.zeros(len(counts), flat.shape[1], dtype=torch.float64)
    return of_units.index_add_(0, rows.unit_id, flat / counts[rows.unit_id, None])
