"""What a run writes down while it trains: public metrics for everyone, internal ones for the building."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from dptrain.tracking.budget import budget_metrics
from dptrain.training.loop import StepReport

Record = dict[str, Any]


class Sink(Protocol):
    """Something that takes one record."""

    def append(self, record: Record) -> None:
        """Takes one record."""
        ...


class Keeper(Protocol):
    """Something that keeps the best model seen so far."""

    def offer(self, record: Record) -> None:
        """Looks at one record and keeps the model where it is the best yet."""
        ...

    def restore(self, last: Record) -> Record:
        """Puts the best model back and returns its record."""
        ...

    def kept(self) -> dict[str, Any]:
        """What is kept so far: plain data and tensors."""
        ...

    def take_up(self, kept: dict[str, Any]) -> None:
        """Goes on from what ``kept`` gave in an earlier process."""
        ...


def evaluation_steps(steps: int, every: int | None) -> list[int]:
    """The steps after which the public split is looked at; the last step is always one of them."""
    stride = every if every is not None else max(1, -(-steps // 20))
    return sorted({*range(stride, steps + 1, stride), steps})


@dataclass
class Recorder:
    """Evaluates at the chosen steps and hands each record to whoever listens.

    Attributes:
        epsilons: steps -> epsilon of the run so far, for the steps at which records are made; empty without privacy.
        evaluate: computes the public metrics now.
        listeners: called with every public record (metrics.jsonl, tracker, progress).
        internal: takes what was computed from private rows.
        published: internal metrics the user chose to publish all the same.
        best: keeps the best model seen, where that is what is released.
        standing: steps -> epsilon at which the data set's account stands, and its limit; None where none is kept.
    """

    steps: list[int]
    epsilons: dict[int, float]
    epsilon_limit: float | None
    evaluate: Callable[[], dict[str, float]]
    listeners: list[Callable[[Record], None]]
    internal: Sink
    published: list[str] = field(default_factory=list)
    standing: Callable[[int], tuple[float, float] | None] = lambda steps: None
    best: Keeper | None = None
    last: Record = field(default_factory=dict)

    def on_step(self, done: int, report: StepReport, seconds: float) -> None:
        """Called by the loop after every step; records at the chosen ones."""
        if done in self.steps:
            self.record(done, report, seconds)

    def record(self, done: int, report: StepReport, seconds: float, epsilon: float | None = None) -> None:
        """Makes one record now. ``epsilon`` replaces the planned curve (a run that stopped early)."""
        private = {
            "batch_size": report.units,
            "clipped_share": report.clipped / report.units if report.units else 0.0,
            "member_loss": report.loss / report.rows if report.rows else None,
        }
        self.internal.append({"step": done, **private})
        record: Record = {"step": done, "seconds": round(seconds, 3)}
        value = epsilon if epsilon is not None else self.epsilons.get(done)
        if value is not None and self.epsilon_limit is not None:
            spent, limit = self.standing(done) or (value, self.epsilon_limit)
            record |= {"epsilon": value, **budget_metrics(spent, limit)}
        record |= self.evaluate()
        record |= {name: private[name] for name in self.published if private[name] is not None}
        self.last = record
        if self.best is not None:
            self.best.offer(record)
        for listener in self.listeners:
            listener(record)

    def settle_on_best(self) -> None:
        """At the end of a run: the best model, where that is what is released, and its record as the last."""
        if self.best is not None:
            self.last = self.best.restore(self.last)
