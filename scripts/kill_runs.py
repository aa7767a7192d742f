"""Kills training runs with SIGKILL and compares the ledger with a witness outside the process.

    python scripts/kill_runs.py [--kills 1000] [--seed 0]

Each trial forks a process that trains privately on a few made-up rows, with a ledger and leases, as ``dptrain train``
does. It is killed either at a random moment, or by itself at one of the boundaries of a step:

    before intent | after intent | before noise | after noise | before optimizer | after optimizer |
    before settle | after settle

Whenever noise leaves the sampler, one byte goes down a pipe first; the bytes are counted here, after the death. For
each trial the ledger must hold at least as many committed steps as bytes came out (never under-counted), and at most
one lease more (over-counted). Prints both; exit code 1 if a step is missing. Results: docs/results/ledger.md.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dptrain.config import PrivacyConfig, TrainConfig
from dptrain.data.source import Rows, SourceInfo
from dptrain.keystream import Keystream
from dptrain.privacy.ledger import open_ledger
from dptrain.privacy.plan import Plan, compile_plan
from dptrain.training.assemble import build_trainer
from dptrain.training.budget import reserve

STEPS = 12
UNITS = 40
BOUNDARIES = ("intent", "noise", "optimizer", "settle")
PLACES = [f"{side} {name}" for name in BOUNDARIES for side in ("before", "after")]
INFO = SourceInfo(name="kills", task="multiclass", input_shape=(4,), num_classes=3, public_size=UNITS)


@dataclass
class Tally:
    """What came of all trials."""

    trials: Counter[str] = field(default_factory=Counter)
    under: int = 0
    over: int = 0
    most_over: int = 0
    released: int = 0


def settings(uri: str, lease: int | None) -> TrainConfig:
    """The run's config; the ledger's account bears any number of trials."""
    private = PrivacyConfig(expected_batch_size=10, noise_multiplier=4.0, epsilon=None, epochs=None, steps=STEPS)
    config = TrainConfig(privacy=private)
    config.ledger = replace(config.ledger, uri=uri, epsilon_limit=1000.0, lease_steps=lease)
    return config


def child(config: TrainConfig, plan: Plan, run_id: str, witness: int, die: Callable[[str, int], None]) -> None:
    """One run, as the training stages carry it out, with a witness at the noise and places to die."""
    ledger = open_ledger(config.ledger.uri)
    rows = Rows(torch.randn(UNITS, 4), torch.randint(0, 3, (UNITS,)))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    with reserve(ledger, config, INFO, plan, "ab" * 32, run_id, "trial") as budget:

        def intend(step: int) -> None:
            die("before intent", step)
            budget.intend(step)
            die("after intent", step)

        trainer = build_trainer(config, plan, nn.Linear(4, 3), rows, loss, Keystream(), intend)
        _watch(trainer, witness, die)
        outcome = trainer.run(lambda done, report, seconds: None)
        die("before settle", STEPS)
        budget.settle(outcome.steps_done)
        die("after settle", STEPS)


def _watch(trainer: Any, witness: int, die: Callable[[str, int], None]) -> None:
    pieces, step = trainer.noise.pieces, 0

    def watched(number: int, count: int) -> Iterator[Tensor]:
        nonlocal step
        step = number + 1
        die("before noise", step)
        os.write(witness, b"n")  # before the noise leaves: the witness may count one that never left, not the reverse
        yield from pieces(number, count)
        die("after noise", step)

    trainer.noise.pieces = watched
    trainer.optimizer.register_step_pre_hook(lambda *_: die("before optimizer", step))
    trainer.optimizer.register_step_post_hook(lambda *_: die("after optimizer", step))


def trial(config: TrainConfig, plan: Plan, run_id: str, place: str, chance: random.Random) -> int:
    """Runs and kills one process; the number of noise releases that the witness saw."""
    at, wait = chance.randint(1, STEPS), chance.random() * 0.25
    out, into = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(out)

        def die(where: str, step: int) -> None:
            if where == place and (step == at or "settle" in where):
                os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            child(config, plan, run_id, into, die)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(into)
    if place == "random":
        time.sleep(wait)
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError(f"{run_id} failed by itself: see its traceback above")
    with os.fdopen(out, "rb") as pipe:
        return len(pipe.read())


def harness(kills: int, seed: int, uri: str, lease: int | None = 3) -> Tally:
    """Carries out the trials and compares."""
    torch.set_num_threads(1)
    chance, tally, config = random.Random(seed), Tally(), settings(uri, lease)
    plan = compile_plan(config.privacy, UNITS)
    ledger = open_ledger(uri)
    event = plan.mechanism.event() if plan.mechanism else None
    ledger.create_account("kills", 1000.0, plan.delta, digest="ab" * 32, typical=event)
    ledger.what_if("kills", event or {})  # prices the step once, for all children
    ledger.close()
    for number in range(kills):
        place = "random" if number % 2 else PLACES[number // 2 % len(PLACES)]
        run_id = f"k{number}"
        released = trial(config, plan, run_id, place, chance)
        ledger = open_ledger(uri)
        entries = [entry for entry in ledger.state.entries.values() if entry.run_id == run_id]
        charged = sum(entry.charged_steps for entry in entries)
        tally.trials[place] += 1
        tally.released += released
        tally.under += charged < released
        tally.over += charged > released
        tally.most_over = max(tally.most_over, charged - released)
        if any(entry.is_open for entry in entries):
            ledger.abandon(run_id, "killed by the harness")
        ledger.close()
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("DPTRAIN_HOME", folder)
        tally = harness(given.kills, given.seed, f"sqlite:///{Path(folder, 'ledger.db')}")
    for place, count in tally.trials.items():
        print(f"{place:18} {count}")
    print(f"noise releases seen by the witness  {tally.released}")
    print(f"runs under-counted                  {tally.under}")
    print(f"runs over-counted                   {tally.over}, by {tally.most_over} steps at most (lease: 3)")
    print(f"seconds                             {time.monotonic() - start:.0f}")
    return int(tally.under > 0)


if __name__ == "__main__":
    sys.exit(main())
