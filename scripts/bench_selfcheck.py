"""What the self-check costs: the tanh CNN, Fashion-MNIST's shape, 60,000 units, expected batch 2,048, secure noise.

    python scripts/bench_selfcheck.py turns [pairs=300] [physical=256] [same=0]
                                            one run that checks itself on every second step
    python scripts/bench_selfcheck.py parts [steps=66] [physical=256]
                                            seconds within the self-check's own calls

Prints Markdown. ``turns``: model, weights, engine with its choices, rows, noise, optimizer and the memory of the sum
are one and the same; every draw is stepped on twice, with the self-check and without, and which comes first alternates;
CPU time of the whole process, all of its threads. What differs is what a run without it would not do: more units to
sample, the dummies' pass, more coordinates of noise and release, the look. The private units' pass, nearly all of a
step, is the same work on the same rows in both, and by chance a few percent longer in one or the other: so it is
timed by itself, and the difference is taken of all the rest. ``same=1`` leaves the self-check out of both: the error
of the method. Mean of the differences but the outermost tenth on each side, with Student's interval of a trimmed
mean. Units are recomputed on one step in 64: those steps' recomputation is timed by itself and counted as often as it
comes.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import scipy.stats
import torch
from selfcheck_runs import plan_of, private
from torch import Tensor

from dptrain.config import ExecutionConfig, ModelConfig, TrainConfig
from dptrain.config_selfcheck import SelfCheckConfig
from dptrain.data.source import Rows
from dptrain.gradients.draw_sum import DrawSum
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


class Stopwatch:
    """A call and the CPU seconds spent in it, of all threads, since ``spent`` was set to 0."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call, self.spent = call, 0.0

    def __call__(self, *given: Any) -> Any:
        before = time.process_time()
        try:
            return self._call(*given)
        finally:
            self.spent += time.process_time() - before


class Turns:
    """One run that checks itself on every second step: all else it is made of is the same in both kinds of step.

    Args:
        pairs: of steps on one draw, one with the self-check and one without.
        same: no step has it; what is left is the error of the method.
    """

    def __init__(self, pairs: int, physical: int, same: bool) -> None:
        self.pairs = pairs
        checked = cnn(True, 2 * pairs + 2, physical)
        check, engine = cast("Any", checked.selfcheck), cast("Any", checked.engine)
        check.checker.alpha = 0.0  # looks cost the same, and a false alarm does not end the measurement
        plain = cnn(False, 2 * pairs + 2, physical)  # of which the sampler alone is used
        off = replace(checked, selfcheck=None, draw=plain.draw)
        runs = {True: off if same else checked, False: off}
        self._draws = {on: run.draw for on, run in runs.items()}
        self._runs = {on: replace(run, draw=functools.partial(self._draw, on)) for on, run in runs.items()}
        self._sums = {on: DrawSum(run._summed, run.grid is not None, run.compiled) for on, run in runs.items()}
        self._sums[False]._flat = self._sums[True].flat()[: off._count]  # in the same memory
        self._rows = torch.empty(0)
        self._private, self._recompute = Stopwatch(engine.clipped_parts), Stopwatch(check.recompute)
        engine.clipped_parts, check.recompute = self._private, self._recomputed

    def run(self) -> dict[str, np.ndarray]:
        """CPU seconds (pairs, 2), without and with: of the private units' pass, recomputation and all the rest."""
        self._runs[True].module.train()
        found = {name: np.zeros((self.pairs, 2)) for name in ("private", "recomputation", "rest")}
        for pair in range(-1, self.pairs):  # the first one chooses a way per layer, and does not count
            self._rows = torch.empty(0)
            for turn, on in enumerate((True, False) if pair % 2 == 0 else (False, True)):
                self._private.spent = self._recompute.spent = 0.0
                before = time.process_time()
                self._runs[on]._step(2 * (pair + 1) + turn, self._sums[on])
                whole, private, recomputed = time.process_time() - before, self._private.spent, self._recompute.spent
                if pair >= 0:
                    found["private"][pair, int(on)] = private
                    found["recomputation"][pair, int(on)] = recomputed
                    found["rest"][pair, int(on)] = whole - private - recomputed
        return found

    def _draw(self, on: bool, step: int) -> Tensor:
        """A draw of its own is paid for; the private units of a pair's second step are those of its first."""
        mine = self._draws[on](step)
        if len(self._rows) == 0:
            self._rows = mine[mine < UNITS]
        return torch.cat([self._rows, mine[mine >= UNITS]])

    def _recomputed(self, *given: Any) -> None:
        """The engine's passes within it are its own and not the private units'."""
        kept = self._private.spent
        self._recompute(*given)
        self._private.spent = kept


def trimmed(values: np.ndarray) -> tuple[float, float]:
    """Mean but for the outermost tenths, and half of Student's 95 % interval of it (Tukey and McLaughlin 1963)."""
    count, cut = len(values), int(TRIMMED * len(values))
    drawn_in = np.clip(values, *np.sort(values)[[cut, count - cut - 1]])
    error = float(np.std(drawn_in, ddof=1)) / ((1 - 2 * TRIMMED) * count**0.5)
    half = float(scipy.stats.t.ppf(0.975, count - 2 * cut - 1)) * error
    return float(np.sort(values)[cut : count - cut].mean()), half


def turns(count: int, physical: int, same: bool) -> None:
    """The run that checks itself on every second step."""
    found = Turns(count, physical, same).run()
    step = float(np.median(found["private"][:, 0] + found["rest"][:, 0]))
    again = found["recomputation"][:, 1]
    dear = again > 20 * np.median(again)
    share = float(again[dear].mean()) / STRETCH if dear.any() else 0.0
    rest, half = trimmed(np.diff(found["rest"])[:, 0])
    passes, blur = trimmed(np.diff(found["private"])[:, 0])

    def line(name: str, value: float, more: float = 0.0) -> str:
        low, high = (f"{(value + sign * more) / step:+.2%}" for sign in (-1, 1))
        return f"| {name} | {1e3 * value:.2f} | {value / step:+.2%} | {f'{low} to {high}' if more else ''} |"

    print("| | ms a step | of the step without | 95 % |\n|---|---|---|---|")
    print(f"| step without (median of {count}) | {1e3 * step:.1f} | | |")
    print(line("more outside the private units' pass", rest, half))
    print(line(f"recomputation, one step in {STRETCH} ({dear.sum()} seen)", share))
    print(line("**these together**", rest + share, half))
    print(line("the private units' pass, with less without", passes, blur), flush=True)


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
    what, *given = sys.argv[1:] or ["turns"]
    options = {key: int(value) for key, value in (word.split("=", 1) for word in given)}
    size = options.get("physical", 256)
    if what == "parts":
        parts(options.get("steps", 66), size)
    else:
        turns(options.get("pairs", 300), size, bool(options.get("same", 0)))
