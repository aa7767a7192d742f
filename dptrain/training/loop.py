"""The one step loop: draw, clipped sum, noise, public divisor, optimizer.

    for each planned step:
        draw        each unit with probability q, independently; may be empty
        clipped sum of the draw, physical batch by physical batch (world size W: summed over ranks)
        intent      on record before the noise leaves
        release     (clipped sum + noise) / divisor
        optimizer   any; post-processing

Guarantee: exactly one noise vector is added to exactly one draw's clipped sum, at most ``plan.steps`` times. A draw
is never merged with, cut by, or repeated into another: the total starts at zero in every step, and a step that was
begun is either released and counted or ends the run.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dptrain.data.batches import PhysicalBatch
from dptrain.gradients.draw_sum import DrawSum
from dptrain.gradients.protocol import Engine, UnitStats, trainable
from dptrain.noise.ahead import NoiseAhead
from dptrain.noise.protocol import Noise
from dptrain.privacy.plan import Plan
from dptrain.training.average import Average
from dptrain.training.selfcheck import SelfCheck

Batches = Callable[[Tensor], Iterator[PhysicalBatch]]
"""Lays a draw out in physical batches on the model's device."""


@dataclass
class StepReport:
    """Internal-tier facts of one step: they are computed from private rows and never leave the building."""

    units: int = 0
    rows: float = 0.0
    clipped: int = 0
    loss: float = 0.0


@dataclass
class Outcome:
    """How a run ended. ``steps_done`` counts every step whose noise was drawn."""

    steps_done: int
    status: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """The parts of a run. Whatever they are, ``run`` does the same thing with them.

    Attributes:
        draw: step number -> indices of the units drawn.
        batches: lays a draw out in physical batches.
        engine: adds clipped sums, in grid steps where ``grid`` is set.
        noise: the noise of a step in the same unit; None only for a non-private plan.
        grid: size of a grid step, or None where sums are in the gradient's own unit.
        intend: called with a step's number, from 1, before its noise is drawn; returns once that is on record.
        group: process group whose ranks hold disjoint units; None for one process.
        compiled: whether the last pass over a sum is numba's, which must be installed; the same numbers.
        average: of the trained parameters, taken after every step; None: none.
        selfcheck: dummy units and the sentinels they move, behind the trained parameters in every sum; None: none.
    """

    module: nn.Module
    plan: Plan
    draw: Callable[[int], Tensor]
    batches: Batches
    engine: Engine
    noise: Noise | None
    grid: float | None
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    intend: Callable[[int], None] = lambda step: None
    group: dist.ProcessGroup | None = None
    compiled: bool = False
    selfcheck: SelfCheck | None = None
    average: Average | None = None
    parameters: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        if (self.noise is None) == self.plan.is_private:
            raise ValueError("a private plan needs noise, and a non-private one must not have any")
        object.__setattr__(self, "parameters", list(trainable(self.module).values()))

    @property
    def _summed(self) -> list[nn.Parameter]:
        """What a sum is over: the trained parameters, and behind them the sentinels, which no optimizer knows."""
        return self.parameters if self.selfcheck is None else [*self.parameters, self.selfcheck.block]

    @property
    def _count(self) -> int:
        return sum(p.numel() for p in self._summed)

    def run(self, on_step: Callable[[int, StepReport, float], None], done: int = 0, seconds: float = 0.0) -> Outcome:
        """Takes the planned steps; after each, calls ``on_step(steps_done, report, seconds)``.

        Ctrl-C or SIGTERM lets the step in hand finish and ends the run as ``stopped``.

        Args:
            on_step: see above.
            done: steps that count as executed already (a resumed run); only the others are taken.
            seconds: that were spent on them.

        Raises:
            ClaimRejected: the self-check found that steps are not what the plan says; the optimizer did not get the
                step in hand.
        """
        total = DrawSum(self._summed, self.grid is not None, self.compiled)
        start = time.monotonic() - seconds
        self.module.train()
        with _stop_on_signal() as stop:
            while done < self.plan.steps and not stop.is_set():
                report = self._step(done, total)
                done += 1
                on_step(done, report, time.monotonic() - start)
        if self.selfcheck is not None and self._is_first:
            self.selfcheck.close(done)
        status = "finished" if done == self.plan.steps else "stopped"
        return Outcome(done, status, time.monotonic() - start)

    def _step(self, done: int, total: DrawSum) -> StepReport:
        """One step, ``done`` counted from 0."""
        report = self._clipped_sum(done, total)
        self.intend(done + 1)
        self._release(done, total)
        if self.selfcheck is not None and self._is_first:
            self.selfcheck.look(done + 1)
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update()
        return report

    def _clipped_sum(self, step: int, total: DrawSum) -> StepReport:
        total.clear()
        for parameter in self._summed:
            parameter.grad = None  # the last step's: nobody reads it again, and it is as large as the model
        if isinstance(self.noise, NoiseAhead):
            self.noise.begin(step, self._count)
        report = StepReport()
        draw, trained = self.draw(step), len(self.parameters)
        if self.selfcheck is not None:
            draw = self.selfcheck.begin(step + 1, draw)
        for batch in self.batches(draw):
            stats = total.add(self.engine, batch, last=trained)
            _note(report, batch, stats, self.plan)
            if self.selfcheck is not None:
                self.selfcheck.recompute(step + 1, self.engine, batch, stats)
        if self.selfcheck is not None and self._is_first:
            total.add(self.selfcheck.engine, self.selfcheck.batch(), first=trained)
        if self.group is not None:
            dist.all_reduce(total.flat(), group=self.group)
        return report

    @property
    def _is_first(self) -> bool:
        """Whether this process draws the noise, and adds the dummies."""
        return self.group is None or dist.get_rank(self.group) == 0

    def _release(self, step: int, total: DrawSum) -> None:
        """Adds the step's noise and hands the optimizer the noisy mean over the public divisor."""
        scale = (1.0 if self.grid is None else self.grid) / self.plan.expected_batch_size
        if self.group is None:
            total.release(None if self.noise is None else self.noise.pieces(step, self._count), scale)
            return
        flat = total.flat()
        if self.grid is not None:
            flat.round_()
        if self.noise is not None and self._is_first:
            flat += self.noise.draw(step, len(flat)).to(flat.device)
        dist.broadcast(flat, group_src=0, group=self.group)
        total.release(None, scale)


def _note(report: StepReport, batch: PhysicalBatch, stats: UnitStats, plan: Plan) -> None:
    norm = plan.mechanism.clipping_norm if plan.mechanism else float("inf")
    report.units += int((stats.norms > 0).sum())
    report.clipped += int((stats.norms > norm).sum())
    report.rows += float((batch.weight > 0).sum())
    report.loss += float(torch.where(batch.weight > 0, stats.losses.double(), 0.0).sum())


@contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets; a second signal falls through to the usual handler."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    held = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _frame: object) -> None:
        stop.set()
        signal.signal(number, held[signal.Signals(number)])

    for number in held:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
