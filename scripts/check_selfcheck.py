"""The self-check's figures: how soon it names each fault, and how often it is wrong.

    python scripts/check_selfcheck.py faults [runs=100]     real runs of a tiny model with a fault built in
    python scripts/check_selfcheck.py clean [runs=3000]     simulated blocks through the real detectors
    python scripts/check_selfcheck.py honest [runs=3000]    real runs without a fault
    python scripts/check_selfcheck.py alone [runs=400]      clipping per batch: seen or not, by units recomputed

Prints Markdown. ``faults`` and ``honest`` are runs of the training loop with real draws, engine, noise and release at
q = 0.05, sigma = 1, 256 sentinels; faults are built into the parts that a run is made of, not into the tests. What it
costs: scripts/bench_selfcheck.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import torch
from selfcheck_runs import Halved, clipped_per_batch, low_noise, reused_seed, tiny, wrong_norm
from torch import Tensor

from dptrain.data.batches import PhysicalBatch
from dptrain.errors import ClaimRejected
from dptrain.gradients.draw_sum import DrawSum
from dptrain.selfcheck.checker import corrected, number_of_looks
from dptrain.selfcheck.detectors import CULPRITS, p_values
from dptrain.selfcheck.tally import Tally
from dptrain.training.loop import Trainer

Picker = Callable[[PhysicalBatch], Tensor]
STEPS = 64
EFFECT = np.where(np.arange(256) % 2 == 0, 1.0, 0.5) / 1.001


def clipping_to(factor: float, recompute: int) -> Callable[[int], Trainer]:
    """Runs whose engines clip to a factor of the norm."""

    def build(seed: int) -> Trainer:
        with wrong_norm(factor):
            return tiny(seed, noise="fast", recompute=recompute)

    return build


def stopped_at(trainer: Trainer) -> tuple[int, str] | None:
    """Step and culprit where the self-check stops a run; None where it does not."""
    taken = 0

    def note(done: int, *_: object) -> None:
        nonlocal taken
        taken = done

    try:
        trainer.run(note)
    except ClaimRejected:
        assert trainer.selfcheck is not None and trainer.selfcheck.accusation is not None
        return taken + 1, trainer.selfcheck.accusation.culprit
    return None


def faults(runs: int) -> None:
    """Real runs with each fault."""
    from dptrain.training import loop

    rows: list[tuple[str, Callable[[int], Trainer], int]] = [
        ("noise 10 % low", lambda seed: low_noise(tiny(seed), 0.90), 8),
        ("noise 5 % low", lambda seed: low_noise(tiny(seed), 0.95), 32),
        ("one seed for all steps' noise", lambda seed: reused_seed(tiny(seed)), 2),
        ("no clipping (sentinels alone)", clipping_to(1e6, recompute=0), 2),
        ("lost 1/W, W = 2", tiny, 32),
        ("clip at 1.1 C", clipping_to(1.1, recompute=4), 1),
        ("clip per physical batch", lambda seed: clipped_per_batch(tiny(seed, recompute=4)), 1),
    ]
    print(
        "| fault | bar: 90 % within steps | share within | median step (90 %, worst) | named |\n|---|---|---|---|---|"
    )
    for name, build, bar in rows:
        loop.DrawSum = Halved if build is tiny else DrawSum  # type: ignore[misc]
        found = [stopped_at(build(seed)) for seed in range(runs)]
        loop.DrawSum = DrawSum  # type: ignore[misc]
        steps = sorted(STEPS * 2 if one is None else one[0] for one in found)
        culprits: dict[str, int] = {}
        for one in found:
            culprits[one[1] if one else "nothing"] = culprits.get(one[1] if one else "nothing", 0) + 1
        share = sum(step <= bar for step in steps) / runs
        spread = f"{steps[runs // 2]} ({steps[int(runs * 0.9) - 1]}, {steps[-1]})"
        said = ", ".join(f"{who} {count}" for who, count in culprits.items())
        print(f"| {name} | {bar} | {share:.0%} | {spread} | {said} |", flush=True)


def honest(runs: int) -> None:
    """Real runs without a fault, sentinels and recomputation on; keys are the operating system's, as in every run."""
    stopped: list[tuple[int, str]] = []
    for seed in range(runs):
        one = stopped_at(tiny(seed, recompute=4))
        stopped += [] if one is None else [one]
        if (seed + 1) % 100 == 0 or seed + 1 == runs:
            named = ", ".join(f"{who} at step {step}" for step, who in stopped) or "none"
            print(f"{len(stopped)} of {seed + 1} real clean runs of {STEPS} steps stopped: {named}", flush=True)


def alone(runs: int) -> None:
    """Clipping per physical batch: on the first step, units that were recomputed and whether the fault was seen."""
    seen: dict[tuple[int, bool], int] = {}
    for seed in range(runs):
        trainer = clipped_per_batch(tiny(seed, recompute=4))
        assert trainer.selfcheck is not None and trainer.selfcheck.recomputation is not None
        recomputation, counts = trainer.selfcheck.recomputation, list[int]()
        pick = recomputation._pick

        def picked(batch: PhysicalBatch, pick: Picker = pick, counts: list[int] = counts) -> Tensor:
            slots = pick(batch)
            counts.append(len(slots))
            return slots

        recomputation._pick = picked  # type: ignore[method-assign]
        first = stopped_at(trainer)
        key = (counts[0] if counts else 0, first is not None and first[0] == 1)
        seen[key] = seen.get(key, 0) + 1
    print("| units recomputed on the first step | runs | fault seen on it |\n|---|---|---|")
    for units in sorted({units for units, _ in seen}):
        yes, no = seen.get((units, True), 0), seen.get((units, False), 0)
        print(f"| {units} | {yes + no} | {yes} |")


def clean(runs: int, steps: int = 512, rate: float = 0.05, alpha: float = 1e-4) -> None:
    """Simulated clean blocks through the real detectors, at every look that a run makes."""
    random, stopped, by = np.random.default_rng(20261123), 0, dict.fromkeys(CULPRITS, 0)
    for start in range(0, runs, 250):
        size = min(250, runs - start)
        tally, accused = Tally(EFFECT, size), np.zeros(size, dtype=bool)
        for step in range(1, steps + 1):
            drawn = random.random((size, 256)) < rate
            tally.add(random.standard_normal((size, 256)) + np.where(drawn, EFFECT, 0.0), drawn)
            if step & (step - 1) == 0:
                for test, p in p_values(tally, rate).items():
                    wrong = corrected(p, test, number_of_looks(steps)) < alpha
                    by[test] += int(wrong.sum())
                    accused |= wrong
        stopped += int(accused.sum())
    named = ", ".join(f"{test} {count}" for test, count in by.items() if count) or "none"
    told = f"{stopped} of {runs} simulated clean runs of {steps} steps stopped (stated: at most {alpha:g})"
    print(f"{told}; by test: {named}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, *given = sys.argv[1:] or ["clean"]
    number = int(given[0].partition("=")[2]) if given else None
    {
        "faults": lambda: faults(number or 100),
        "clean": lambda: clean(number or 3000),
        "honest": lambda: honest(number or 3000),
        "alone": lambda: alone(number or 400),
    }[what]()
