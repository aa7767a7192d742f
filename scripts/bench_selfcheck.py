"""What the self-check costs: the tanh CNN, Fashion-MNIST's shape, 60,000 units, expected batch 2,048, secure noise.

    python scripts/bench_selfcheck.py pairs [rounds=8] [pairs=40] [physical=256] [same=0]
                                            the run with and without it, a step of each by turns in one process
    python scripts/bench_selfcheck.py parts [steps=66] [physical=256]
                                            seconds within the self-check's own calls

Prints Markdown. ``pairs``: the two runs share the rows and are given the same draws (so that a step of one has the rows
of the other's) but pay for their own; which goes first alternates; CPU time of the whole process, all of its threads.
The engine's choice of a way per layer, made by timings on the first step, is that of one run for both: two choices can
lie 10 % of a step apart. Where two runs lie in memory alone moves one against the other by half a percent for as long
as they live: so every round builds both anew, and the interval is Student's t over rounds. ``same=1`` turns the
self-check off in both: what is left is the error of the method. Steps on which units are recomputed, one in 64, are few
and dear: their surplus is measured by itself and counted as often as it comes in a run. Of the others, the mean
difference of a round's pairs but the outermost tenth on each side.
"""

from __future__ import annotations

import functools
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.stats
import torch
from selfcheck_runs import plan_of, private
from torch import Tensor

from dptrain.config import ExecutionConfig, ModelConfig, TrainConfig
from dptrain.config_selfcheck import SelfCheckConfig
from dptrain.data.source import Rows
from dptrain.keystream import Keystream
from dptrain.models.build import ModelSpec, build_model
from dptrain.training.assemble import build_trainer
from dptrain.training.loop import Trainer
from dptrain.training.losses import cross_entropy
from dptrain.training.selfcheck_recompute import STRETCH

UNITS, BATCH = 60_000, 2048
SHAPE = (1, 28, 28)
TRIMMED = 0.1
"""Share of the differences left out at each end: steps that the machine disturbed."""


@functools.cache
def pictures() -> Rows:
    """60,000 random pictures, the same for all runs."""
    generator = torch.Generator().manual_seed(1)
    return Rows(torch.rand(UNITS, *SHAPE, generator=generator), torch.arange(UNITS) % 10)


def cnn(enabled: bool, steps: int, physical: int) -> Trainer:
    """The 26,010-parameter tanh network on random pictures."""
    torch.manual_seed(0)
    spec = ModelSpec(
        name="tanh_cnn",
        options={},
        features="none",
        replace_batchnorm=False,
        raw_shape=SHAPE,
        input_shape=SHAPE,
        num_outputs=10,
        task="multiclass",
        class_names=tuple(str(number) for number in range(10)),
    )
    config = TrainConfig(
        model=ModelConfig(name="tanh_cnn"),
        privacy=private(BATCH, steps, clipping_norm=0.1),
        execution=ExecutionConfig(physical_batch_size=physical),
        selfcheck=SelfCheckConfig(enabled=enabled),
    )
    plan = plan_of(UNITS, BATCH, steps, clipping_norm=0.1)
    return build_trainer(config, plan, build_model(spec), pictures(), cross_entropy, Keystream())


class Turns:
    """Two runs in two threads, of which one goes at a time, a step each."""

    def __init__(self, steps: int, physical: int, same: bool, built_first: bool) -> None:
        self.steps, self.physical = steps, physical
        self.enabled = {True: not same, False: False}
        self.built_first = built_first
        self.spent: dict[bool, list[float]] = {True: [], False: []}
        self.recomputed: set[int] = set()
        self._gates = {True: threading.Semaphore(0), False: threading.Semaphore(0)}
        self._ready = threading.Semaphore(0)
        self._draws: dict[int, Tensor] = {}
        self._choosers: dict[str, Any] = {}

    def run(self) -> None:
        """Steps 0, 1, ... of both; the run with the self-check goes first at even ones."""
        threads = [
            threading.Thread(target=self._race, args=(on,), daemon=True)
            for on in (self.built_first, not self.built_first)
        ]
        for thread in threads:
            thread.start()
            self._ready.acquire()
        for step in range(self.steps):
            for on in (True, False) if step % 2 == 0 else (False, True):
                before = time.process_time()
                self._gates[on].release()
                self._ready.acquire()
                self.spent[on].append(time.process_time() - before)
        for on, thread in zip((self.built_first, not self.built_first), threads, strict=True):
            self._gates[on].release()
            thread.join()

    def _race(self, on: bool) -> None:
        torch.set_num_threads(1)  # of this thread
        trainer = cnn(self.enabled[on], self.steps, self.physical)
        if trainer.selfcheck is not None:
            trainer.selfcheck.checker.alpha = 0.0  # looks cost the same, and a false alarm does not end the measurement
        own = trainer.draw

        def draw(step: int) -> Tensor:
            mine = own(step)
            if step not in self._draws:  # both runs' rows are those of whichever comes first
                self._draws[step] = mine[mine < UNITS]
            elif on:
                return torch.cat([self._draws.pop(step), mine[mine >= UNITS]])
            else:
                return self._draws.pop(step)
            return mine

        def note(done: int, *_: object) -> None:
            check = trainer.selfcheck
            if done == 1:
                engine: Any = trainer.engine
                engine.chooser = self._choosers.setdefault("of both", engine.chooser)
            if check is not None and check.recomputation is not None and check.recomputation._is_now:
                self.recomputed.add(done - 1)
            self._ready.release()
            self._gates[on].acquire()

        self._ready.release()
        self._gates[on].acquire()
        replace(trainer, draw=draw).run(note)
        self._ready.release()


def pairs(rounds: int, count: int, physical: int, same: bool) -> None:
    """The paired runs."""
    usual: list[float] = []  # of a round
    recomputed: list[np.ndarray] = []
    ordinary: list[np.ndarray] = []
    plain: list[float] = []
    for number in range(rounds):
        turns = Turns(count + 2, physical, same, built_first=number % 2 == 0)
        turns.run()
        on, off = (
            np.array(turns.spent[True])[2:],
            np.array(turns.spent[False])[2:],
        )  # steps 1 and 2 choose and look more
        dear = np.isin(np.arange(2, count + 2), sorted(turns.recomputed))
        plain.append(float(np.median(off)))
        usual.append(_trimmed((on - off)[~dear]))
        ordinary.append((on - off)[~dear])
        recomputed.append((on - off)[dear])
        print(f"round {number + 1}: {usual[-1] / plain[-1]:+.2%}", file=sys.stderr, flush=True)
    step, seen = float(np.median(plain)), np.concatenate(recomputed)
    surplus = float(np.median(seen) - np.median(np.concatenate(ordinary))) if len(seen) else 0.0
    share, mean = surplus / STRETCH, float(np.mean(usual))
    half = float(scipy.stats.t.ppf(0.975, rounds - 1) * scipy.stats.sem(usual))
    print("| | ms a step | of the step without |\n|---|---|---|")
    print(f"| step without (median of {rounds} rounds of {count}) | {1e3 * step:.1f} | |")
    print(f"| more with it, steps without recomputation | {1e3 * mean:.2f} | {mean / step:+.2%} |")
    print(f"| recomputation, one step in {STRETCH} ({len(seen)}: {1e3 * surplus:.0f} ms each)", end=" ")
    print(f"| {1e3 * share:.2f} | {share / step:+.2%} |")
    whole = mean + share
    total = [f"{value / step:+.2%}" for value in (whole, whole - half, whole + half)]
    print(f"| **all of it** (95 %, t over rounds) | **{1e3 * whole:.2f}** | **{total[0]} [{total[1]}, {total[2]}]** |")
    print("\nEach round:", ", ".join(f"{one / step:+.2%}" for one in usual))


def _trimmed(values: np.ndarray) -> float:
    cut = int(TRIMMED * len(values))
    return float(np.sort(values)[cut : len(values) - cut].mean())


def parts(steps: int, physical: int) -> None:
    """CPU seconds spent in the self-check's own calls, and in all of the run, first step apart."""
    trainer = cnn(True, steps, physical)
    check: Any = trainer.selfcheck
    spent: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*given: Any) -> Any:
            before = time.process_time()
            try:
                return call(*given)
            finally:
                spent[name][-1] += time.process_time() - before

        spent[name] = [0.0]
        return measured

    for name in ("begin", "recompute", "batch", "look"):
        setattr(check, name, timed(name, getattr(check, name)))
    check.engine.clipped_parts = timed("dummies", check.engine.clipped_parts)
    ends = [time.process_time()]

    def note(*_: object) -> None:
        ends.append(time.process_time())
        for values in spent.values():
            values.append(0.0)

    trainer.run(note)
    whole = np.diff(ends)
    for label, rest in (("first step", slice(0, 1)), (f"steps 2 to {steps}", slice(1, None))):
        own = {name: float(np.sum(values[:steps][rest])) for name, values in spent.items()}
        count, all_of_it = len(whole[rest]), float(whole[rest].sum())
        told = ", ".join(f"{name} {value / count * 1e3:.2f}" for name, value in own.items())
        share = sum(own.values()) / (all_of_it - sum(own.values()))
        middle = statistics.median(whole[rest]) * 1e3
        print(f"{label}: {all_of_it / count * 1e3:.1f} ms a step (median {middle:.1f}),", end=" ")
        print(f"of it {told} ms: {share:+.2%} on the rest")


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, *given = sys.argv[1:] or ["pairs"]
    options = {key: int(value) for key, value in (word.split("=", 1) for word in given)}
    size = options.get("physical", 256)
    if what == "parts":
        parts(options.get("steps", 66), size)
    else:
        pairs(options.get("rounds", 8), options.get("pairs", 40), size, bool(options.get("same", 0)))
