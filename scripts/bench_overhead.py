"""What a step costs beside the gradient: accountant, tracker and loop as a share of a step on the tanh CNN.

    python scripts/bench_overhead.py [STEPS]     prints the table of docs/results/overhead.md

Made-up pictures of Fashion-MNIST's shape and number, the settings of experiment=fashion_tanh_cnn. CPU time of the
process (the tracker's thread included) is split into what the step must do (engine, noise and divisor, optimizer) and
the rest: loop, draws, tracker, accountant, and a ledger of its own, to which every step's intent is committed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dptrain.compose import compose
from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.gradients.draw_sum import DrawSum, SumsInParts
from dptrain.registry import sources


@sources.register("made_up_fashion")
def made_up_fashion(config: Any, seed: int) -> Source:
    """60,000 + 1,000 random pictures."""
    info = SourceInfo(
        name="made_up_fashion", task="multiclass", input_shape=(1, 28, 28), num_classes=10, public_size=60_000
    )

    def part(count: int) -> Rows:
        return Rows(torch.rand(count, 1, 28, 28), torch.arange(count) % 10)

    return Source(info, lambda: Splits(part(60_000), part(1_000)))


class Clock:
    """Adds up the process's CPU time spent inside some calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, timed under ``name``."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start

        return timed


def main(steps: int) -> None:
    """Runs a few planned steps with everything on and prints where the time went."""
    from dptrain.training import stages

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            "experiment=fashion_tanh_cnn",
            "data=own",
            "data.name=made_up_fashion",
            f"run.dir={Path(folder) / 'run'}",
            f"tracking.uri=sqlite:///{Path(folder) / 'mlflow.db'}",
            "execution.threads=1",
            "run.purpose=final",
            f"ledger.uri=sqlite:///{Path(folder) / 'ledger.db'}",
            "ledger.epsilon_limit=100",
        ]
        clock = Clock()
        start = time.process_time()
        setup = stages.prepare(compose("train", overrides))
        planning = time.process_time() - start
        planned = setup.plan.steps
        start = time.process_time()
        ledger = stages.open_account(setup)
        opening = time.process_time() - start
        loaded = stages.read_rows(setup, ledger)
        start = time.process_time()
        budget = stages.reserve(setup, loaded, ledger)
        run = stages.open_folder(setup, loaded)
        trainer, recorder, tracker = stages.assemble(setup, loaded, run, budget)
        assembling = opening + time.process_time() - start
        assert isinstance(trainer.engine, SumsInParts)
        trainer.engine.clipped_parts = clock.around("engine (clipped sum)", trainer.engine.clipped_parts)
        DrawSum.release = clock.around("secure noise and divisor", DrawSum.release)
        trainer.optimizer.step = clock.around("optimizer", trainer.optimizer.step)
        recorder.evaluate = clock.around("public evaluation", recorder.evaluate)
        recorder.steps = [s * steps // 3 for s in (1, 2, 3)]
        object.__setattr__(setup.plan, "steps", steps)
        start = time.process_time()
        trainer_outcome = stages.train(setup, trainer, recorder, tracker, run)
        total = time.process_time() - start
        start = time.process_time()
        tracker.finish(trainer_outcome.status)
        budget.settle()
        finishing = time.process_time() - start
    work = sum(v for k, v in clock.seconds.items() if k != "public evaluation")
    look = clock.seconds["public evaluation"]
    loop = (total - work - look) / steps
    fixed = (planning + assembling + finishing) / planned
    step = work / steps
    print("| part | CPU ms a step |")
    print("|---|---|")
    for name, seconds in clock.seconds.items():
        if name != "public evaluation":
            print(f"| {name} | {1e3 * seconds / steps:.2f} |")
    print(f"| loop, sampler, batches, recording, commits, tracker's thread | {1e3 * loop:.2f} |")
    print(f"| plan, account, odometer, store, closing (spread over {planned} planned steps) | {1e3 * fixed:.2f} |")
    print(f"| **overhead: the last two, as a share of the rest** | **{100 * (loop + fixed) / step:.2f} %** |")
    print(f"\n{steps} steps measured; public evaluation (3 looks, {look:.2f} s in all) is left out of both sides.")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 12)
