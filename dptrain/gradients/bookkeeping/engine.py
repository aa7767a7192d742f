"""The engine ``bookkeeping``: clipped sums at nearly the cost of an ordinary step.

One forward pass, and one backward pass that computes gradients of activations only. What every use of a parameter
needs for its gradient is noted on the way (``tape``), with each unit's squared norm of it; then, with the clip factors
known, one weighted sum is taken (the book-keeping of Bu et al. 2023, "Differentially Private Optimization on Large
Model at Small Cost", alg. 1, whose per-layer choice is made here by measurement). The arithmetic is that of a plain
step plus the norms. Where modules are checkpointed (``checkpoint``), the backward pass is walked twice (``walk``).
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from dptrain.data.batches import PhysicalBatch
from dptrain.errors import ConfigError
from dptrain.gradients.bookkeeping.checkpoint import checkpointed_modules, replaced
from dptrain.gradients.bookkeeping.choice import Chooser
from dptrain.gradients.bookkeeping.contribution import Contribution
from dptrain.gradients.bookkeeping.groups import Groups
from dptrain.gradients.bookkeeping.meter import Meter
from dptrain.gradients.bookkeeping.refusals import loss_of_outputs, out_of_memory, refusal_of
from dptrain.gradients.bookkeeping.rules import RULES
from dptrain.gradients.bookkeeping.runs import Planner, RunningSum, runs
from dptrain.gradients.bookkeeping.tape import Tape
from dptrain.gradients.bookkeeping.walk import Graph, SecondWalk, form_of
from dptrain.gradients.clip import check_grid, clip_factor
from dptrain.gradients.draw_sum import add_parts
from dptrain.gradients.protocol import ClippingRule, EngineSettings, RowLoss, UnitStats, trainable
from dptrain.registry import engines

Moving = dict[str, nn.Parameter]

LARGEST_NORM = 2.0**110
"""Times C, or 1 where C is more: the largest norm that is clipped; larger ones count as overflow, and add nothing."""


class BookkeepingEngine:
    """Clipped sums from one backward pass.

    Guarantee: rows go through the model one by one (under vmap), so they cannot meet in it. A slot's norm is taken in
    float32 products with float64 sums, raised by what rounding and cancellation can hide; the sum itself is a float32
    product, so that a slot's contribution is C (1 + r) with r measured, not proved: float class ``measured``. A slot
    whose gradient is not finite, and padding, add exactly nothing.

    Args:
        module: the model; its parameters are read at every call.
        row_loss: (outputs (1, ...), targets (1,)) -> (1,) loss.
        rule: clipping norm and grid.
        settings: autocast, the limits on memory, and patterns of modules to checkpoint.

    Raises:
        ConfigError: a grid or a limit that cannot be kept, or a pattern that names nothing.

    Attributes:
        without_rule: function that has no rule -> a parameter that it reads by copies a row; of the latest pass.
        ways: parameter -> how its part was computed in the latest pass: the way picked, or the form of the one way.
    """

    name = "bookkeeping"
    float_class = "measured"

    def __init__(
        self,
        module: nn.Module,
        row_loss: RowLoss,
        rule: ClippingRule,
        settings: EngineSettings,
    ) -> None:
        check_grid(rule)
        self._module = module
        self._row_loss = row_loss
        self._rule = rule
        self._autocast = settings.autocast
        self._checkpointed = checkpointed_modules(module, settings.checkpoint)
        held = None if self._checkpointed else settings.memory_limit  # where nothing is held, all of it fits
        self.chooser = Chooser(held, settings.compiled)
        self._planner = Planner.of(settings.pass_limit, trainable(module).values())
        self.without_rule: dict[str, str] = {}
        self.ways: dict[str, str] = {}
        self._derives = True
        self._writes_inputs = True  # until a pass has shown that the model does not

    def add_clipped_sum(self, batch: PhysicalBatch, total: Tensor) -> UnitStats:
        """See ``Engine``."""
        parts, stats = self.clipped_parts(batch)
        add_parts(parts, total)
        return stats

    def clipped_parts(self, batch: PhysicalBatch) -> tuple[list[Tensor], UnitStats]:
        """The clipped sum, one tensor a trainable parameter, not rounded to the grid. See ``SumsInParts``."""
        moving, total = trainable(self._module), RunningSum()
        take = self._pass if self._planner.limit is None else self._in_runs
        stats = take(batch, moving, total)
        parts = [total.parts[name] if name in total.parts else torch.zeros_like(p) for name, p in moving.items()]
        return parts, stats

    def _in_runs(self, batch: PhysicalBatch, moving: Moving, total: RunningSum) -> UnitStats:
        """As many passes as the limit asks for."""
        norms = torch.zeros(len(batch.weight), dtype=torch.float64, device=batch.weight.device)
        losses = torch.zeros_like(norms, dtype=torch.float32)
        if len(norms) and not self._planner.knows(batch.inputs.shape[1:]):
            self._planner.learn(batch, lambda rows, meter: self._pass(rows, moving, self._tried(), meter))
        for run in runs(batch, self._planner):
            stats = self._pass(run.batch, moving, total)
            norms[run.slots] = stats.norms[: len(run.slots)]
            losses[run.rows] = stats.losses
        return UnitStats(norms, losses)

    def _tried(self) -> RunningSum:
        """Takes the sum of made-up rows: for a second walk, without holding what the planner adds itself."""
        return RunningSum(keeps=not self._checkpointed)

    def _pass(self, batch: PhysicalBatch, moving: Moving, total: RunningSum, meter: Meter | None = None) -> UnitStats:
        """Adds the clipped sum of rows that go through at once."""
        tape = Tape(moving, Groups(batch.unit, batch.weight), self.chooser, RULES, derives=self._derives)
        try:
            with meter or contextlib.nullcontext():
                losses, graph = self._forward(tape, batch, meter)
                contributions = graph.walk_for_norms() if self._checkpointed else graph.walk()
            if meter is not None:
                meter.mark()
        except (RuntimeError, ConfigError) as error:
            if not tape.has_derived or out_of_memory(error):
                self._refuse(error, batch)
                raise
            self._derives = False  # a model that writes into such values, say: copies a row can be written to
            self.chooser = self.chooser.afresh()
            return self._pass(batch, moving, total, meter)
        try:
            with torch.no_grad(), (meter if self._checkpointed else None) or contextlib.nullcontext():
                norms = self._add_weighted(graph, contributions, moving, total)
        except RuntimeError as error:
            self._refuse(error, batch)
            raise
        if meter is not None and self._checkpointed:  # all that was alive at once may be so beside the whole sum
            meter.marks += [meter.most, meter.most]
        return UnitStats(norms, losses)

    def _refuse(self, error: RuntimeError | ConfigError, batch: PhysicalBatch) -> None:
        """Raises what an error of torch's amounts to, where that is a refusal."""
        refusal = refusal_of(error, batch.inputs, self._autocast) if isinstance(error, RuntimeError) else None
        if refusal is not None:
            raise refusal from error

    def _add_weighted(
        self, graph: Graph, contributions: dict[str, Contribution], moving: Moving, total: RunningSum
    ) -> Tensor:
        """Adds the weighted sum; returns the slots' norms."""
        tape, groups = graph.tape, graph.tape.groups
        if groups.num_units:  # padding alone has shown nothing
            self.chooser.settle()
            self.ways = {name: self.chooser.way_of(name) or form_of(c) for name, c in contributions.items()}
        self.without_rule = tape.without_rule
        norms, factor = self._clip(contributions, groups, sum(p.numel() for p in moving.values()))
        total.begin(groups.num_units)
        if self._checkpointed:
            second = SecondWalk(norms, factor, total, frozenset(contributions), self._rule.grid)
            graph.walk_for_sum(second, self._rule.clipping_norm)
            return groups.to_slots(norms)
        for name in sorted(contributions, key=lambda name: -contributions[name].nbytes):
            total.add(name, contributions.pop(name), factor)  # the largest first: each is then let go
        return groups.to_slots(norms)

    def _forward(self, tape: Tape, batch: PhysicalBatch, meter: Meter | None) -> tuple[Tensor, Graph]:
        """The rows' losses (R,) float32, and the way back from them."""
        anchor = torch.zeros(len(batch.weight), device=batch.weight.device, requires_grad=True)
        buffers = {name: b.clone() for name, b in self._module.named_buffers()}
        inputs = batch.inputs.clone() if self._writes_inputs else batch.inputs
        version = inputs._version

        def loss_of_row(row: Tensor, target: Tensor, weight: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
            tape.anchor = anchor
            with tape, torch.autocast(row.device.type, dtype=self._autocast, enabled=self._autocast is not None):
                outputs = functional_call(self._module, buffers, (row[None],))
            loss = loss_of_outputs(self._row_loss, outputs, target[None])
            return loss * weight.to(loss.dtype), loss.detach()

        rows = vmap(loss_of_row, randomness="different")
        with replaced(self._checkpointed, tape):
            weighted, losses = rows(inputs, batch.targets, batch.weight, anchor)
        self._writes_inputs = inputs._version != version
        if meter is not None:
            meter.mark()
        live = None
        if weighted.requires_grad and tape.groups.num_units:
            live = torch.where(batch.weight > 0, weighted, 0.0).sum()
        return losses.float(), Graph(tape, live, anchor)

    def _clip(self, contributions: dict[str, Contribution], groups: Groups, size: int) -> tuple[Tensor, Tensor]:
        """(U,) float64 norms, and (U,) clip factors; units that are not finite are silenced."""
        squared = torch.zeros(groups.num_units, dtype=torch.float64, device=groups.slots.device)
        for contribution in contributions.values():
            squared += contribution.squared_norm
        norms = squared.sqrt()
        factor = clip_factor(norms, self._rule, size)
        # Towards the largest norm that a factor can answer, contributions fade to nothing: were they cut off, a unit
        # at the edge could be in or out by its rounding. NaN compares as False, and so counts as nothing.
        largest = LARGEST_NORM * min(self._rule.clipping_norm, 1.0)
        fade = (largest / norms - 1.0).clamp_(0.0, 1.0)
        alive = norms < largest
        if not bool(alive.all()):
            for contribution in contributions.values():
                contribution.silence(~alive)
        factor = torch.where(alive & groups.live, factor * fade, 0.0)
        return torch.where(alive, norms, float("inf")), factor


@engines.register("bookkeeping")
def bookkeeping_engine(
    module: nn.Module, row_loss: RowLoss, rule: ClippingRule, settings: EngineSettings
) -> BookkeepingEngine:
    """One backward pass for all rows; any model that vmap can follow."""
    return BookkeepingEngine(module, row_loss, rule, settings)


@engines.register("auto")
def auto_engine(
    module: nn.Module, row_loss: RowLoss, rule: ClippingRule, settings: EngineSettings
) -> BookkeepingEngine:
    """The engine chosen for you: bookkeeping, which runs what vmap runs, several times as fast."""
    return BookkeepingEngine(module, row_loss, rule, settings)
