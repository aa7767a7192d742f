"""Every layer rule of an engine against float64 autograd, whatever the user's model: layouts, ways and sizes.

A bookkeeping engine has several ways for one layer and takes the quickest by a clock; all of them are asked, by turns.
Batches come with one row a unit, with two side by side, and mixed (one to three, in any order, with padding full of
numbers and a unit that is not a number); some models with more than 512 units at once, and in passes that a memory
limit cuts up.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dptrain.conformance.reference import added
from dptrain.conformance.stand import NORM_TOLERANCE, UNIT_TOLERANCE, Result, Stand
from dptrain.conformance.zoo import CLASSES, KINDS, Kind
from dptrain.data.batches import PhysicalBatch
from dptrain.errors import ConfigError, one_line
from dptrain.gradients.bookkeeping.choice import Chooser
from dptrain.gradients.bookkeeping.engine import BookkeepingEngine
from dptrain.gradients.protocol import ClippingRule, Engine, trainable
from dptrain.gradients.recompute import unit_gradients
from dptrain.training.assemble import build_engine

UNITS = 9
"""Of one batch, but for the large ones."""
LARGE = 530
"""Units of a large batch: beyond every number from which on an engine works in pieces."""
MOST_WAYS = 12
COMPILED = importlib.util.find_spec("numba") is not None
"""Whether ways by compiled loops are asked, too."""
RUNS_ALL = ("auto", "bookkeeping", "loop")
"""Engines that run whatever torch runs, so that an error out of them is a fault."""


@dataclass
class ByTurns(Chooser):
    """Takes the n-th way of every use, untimed, so that each of them is asked."""

    nth: int = 0
    most: int = 1

    def take(self, key: Any, ways: Any, units: int = 1, of_some: Any = None) -> Any:
        """See ``Chooser``."""
        names = sorted(ways)
        self.most = max(self.most, len(names))
        self.picks[key] = names[self.nth % len(names)]
        if not self.settled:
            self.users.setdefault(key, []).append(self.user)
        return ways[self.picks[key]]()


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy a row, in the outputs' own dtype."""
    return F.cross_entropy(outputs, targets, reduction="none")


def layers(stand: Stand) -> Iterator[Result]:
    """One result for all models: the first that is wrong is named, with layout and way."""
    wrong, declined, asked = list[str](), list[str](), 0
    for name, kind in KINDS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # vmap tells what it does slowly
                found, count = of_kind(stand, kind)
        except ConfigError:
            declined.append(name)
            continue
        except Exception as error:
            if not stand.config.clipping.engine.startswith(
                RUNS_ALL
            ):  # torch's or Opacus' own limits: nothing is trained
                declined.append(name)
                continue
            found, count = one_line(f"ends in {type(error).__name__}: {error}")[:120], 0
        asked += count
        wrong += [f"{name}: {found}"] if found else []
    if not asked and not wrong:
        yield Result("layers", None, "the engine declines every small model")
        return
    told = f"{asked} sums of {len(KINDS) - len(declined)} small models agree with float64 autograd"
    told += f"; declined: {', '.join(declined)}" if declined else ""
    yield Result("layers", not wrong, "; ".join(wrong[:3]) if wrong else told)


def of_kind(stand: Stand, kind: Kind) -> tuple[str | None, int]:
    """What is wrong with an engine's sums for one model, and how many were asked for.

    Raises:
        ConfigError: the engine declines the model.
    """
    case = Case.of(stand, kind)
    count = 0
    for which, sizes in case.layouts().items():
        wrong, asked = case.check(which, sizes)
        count += asked
        if wrong:
            return wrong, count
    if kind.many and stand.config.clipping.engine != "loop":  # which takes one unit after the other
        wrong = case.check_many()
        count += 1
        return wrong, count
    return None, count


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model under one engine."""

    stand: Stand
    kind: Kind
    wide: bool

    @classmethod
    def of(cls, stand: Stand, kind: Kind) -> Case:
        """Under the stand's engine; in float64 where the run is, in float32 else."""
        return cls(stand=stand, kind=kind, wide=stand.config.execution.dtype == "float64")

    def module(self) -> nn.Module:
        """Always the same."""
        with torch.random.fork_rng([]):
            torch.manual_seed(21)
            module = self.kind.build()
        return (module.double() if self.wide else module).train()

    def engine(self, clip: float, limit: int | None = None) -> tuple[Engine, nn.Module]:
        """A new one on a new model."""
        execution = replace(
            self.stand.config.execution, dtype="float64" if self.wide else "float32", memory_limit=limit, device="cpu"
        )
        module = self.module()
        config = replace(self.stand.config, execution=execution)
        return build_engine(config, module, loss, ClippingRule(clip, None)), module

    def layouts(self) -> dict[str, list[int]]:
        """Name -> rows of each unit."""
        if self.stand.config.clipping.engine == "opacus_ghost":
            return {"one row a unit": [1] * UNITS}
        found = {"one row a unit": [1] * UNITS, "mixed": [1 + u % 3 for u in range(UNITS)]}
        return found | ({"two rows a unit": [2] * UNITS} if self.kind.many else {})

    def batch(self, which: str, sizes: list[int]) -> PhysicalBatch:
        """Rows of the units; ``mixed``: in any order, with padding and a last unit that is not a number."""
        generator = torch.Generator().manual_seed(len(which))
        unit = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        rows = len(unit)
        inputs = self._inputs(rows, generator)
        weight = 1.0 / torch.tensor(sizes)[unit].float()
        targets = torch.randint(CLASSES, (rows,), generator=generator)
        batch = PhysicalBatch(inputs, targets, unit, weight)
        if which != "mixed":
            return batch
        mixed = torch.randperm(rows, generator=generator)
        batch = PhysicalBatch(inputs[mixed], targets[mixed], unit[mixed], weight[mixed])
        further = self._inputs(3, generator)
        if not self.kind.ids:
            further *= 1e3
            further[2] = float("nan")
        return PhysicalBatch(
            torch.cat([batch.inputs, further]),
            torch.cat([batch.targets, torch.zeros(3, dtype=torch.int64)]),
            torch.cat([batch.unit, torch.tensor([rows, rows + 1, len(sizes)])]),
            torch.cat([batch.weight, torch.tensor([0.0, 0.0, 0.0 if self.kind.ids else 1.0])]),
        )

    def _inputs(self, rows: int, generator: torch.Generator) -> Tensor:
        shape = (rows, *self.kind.shape)
        if self.kind.ids:
            ids = torch.randint(self.kind.ids, shape, generator=generator)
            ids[:, 1] = ids[:, 0]  # a token that comes twice
            ids[::2, -2:] = 0
            return ids
        inputs = torch.randn(shape, generator=generator)
        if self.kind.cancels:
            half = inputs.shape[1] // 2
            inputs[:, half:] = 1e-3 * inputs[:, half:] - inputs[:, :half]
        return inputs.double() if self.wide else inputs

    def check(self, which: str, sizes: list[int]) -> tuple[str | None, int]:
        """One layout: by the engine's own choice, and by every way in turn."""
        batch = self.batch(which, sizes)
        gradients = torch.stack(list(unit_gradients(self.module(), loss, batch, torch.arange(len(sizes)))))
        norms = gradients.norm(dim=1)
        clip = float(norms.median())
        wanted = (gradients * (clip / norms.clamp(min=clip))[:, None]).sum(0)
        engine, module = self.engine(clip)
        turns = 1
        if isinstance(engine, BookkeepingEngine):
            engine.chooser = ByTurns(compiled=COMPILED)
        for nth in range(MOST_WAYS):
            if nth >= turns:
                break
            if isinstance(engine, BookkeepingEngine):
                engine.chooser = ByTurns(compiled=COMPILED, nth=nth)
            wrong = self._compare(engine, module, batch, wanted, norms, clip)
            if wrong is not None:
                return f"{which}, {self._way(engine)}: {wrong}", nth + 1
            turns = getattr(getattr(engine, "chooser", None), "most", 1)
        return None, turns

    def _compare(
        self, engine: Engine, module: nn.Module, batch: PhysicalBatch, wanted: Tensor, norms: Tensor, clip: float
    ) -> str | None:
        total, stats = added(engine, batch, sum(p.numel() for p in trainable(module).values()))
        dtype = "float64" if self.wide else "float32"
        told = stats.norms[: len(norms)].double()
        low = float(((norms - told) / norms.clamp(min=1e-12)).max())
        if not low <= NORM_TOLERANCE[dtype]:
            return f"a norm is {low:.1e} below the true one (tolerance {NORM_TOLERANCE[dtype]:.0e})"
        off = float((total - wanted).norm()) / clip / len(norms)
        if not off <= UNIT_TOLERANCE[dtype]:
            return f"the sum is {off:.1e} C a unit from float64 autograd's (tolerance {UNIT_TOLERANCE[dtype]:.0e})"
        return None

    def _way(self, engine: Engine) -> str:
        chooser = getattr(engine, "chooser", None)
        return f"way {chooser.nth + 1}" if isinstance(chooser, ByTurns) else engine.name

    def check_many(self) -> str | None:
        """More units than any limit, at once and in the passes of a memory limit: as many times the sum of a few."""
        sizes = self.layouts().get("mixed", [1] * UNITS)
        single = self.batch("few", sizes)
        norms = torch.stack([g.norm() for g in unit_gradients(self.module(), loss, single, torch.arange(UNITS))])
        clip, copies = float(norms.median()), math.ceil(LARGE / UNITS)
        slots = (single.unit + UNITS * torch.arange(copies)[:, None]).flatten()
        many = PhysicalBatch(
            single.inputs.repeat(copies, *[1] * len(self.kind.shape)),
            single.targets.repeat(copies),
            slots,
            single.weight.repeat(copies),
        )
        for limit in (None, 0):
            engine, module = self.engine(clip, limit)
            if isinstance(engine, BookkeepingEngine):
                engine.chooser = ByTurns(compiled=COMPILED)
            elif limit is not None:
                continue
            size = sum(p.numel() for p in trainable(module).values())
            one, whole = added(engine, single, size)[0], added(engine, many, size)[0]
            off = float((whole - copies * one).norm()) / clip / (copies * UNITS)
            allowed = min(UNIT_TOLERANCE["float32"], 0.25 / (copies * UNITS))
            if not off <= allowed:
                cut = " under a memory limit" if limit is not None else ""
                return f"{copies * UNITS} units at once{cut} are off by {off:.1e} C a unit (tolerance {allowed:.0e})"
        return None
