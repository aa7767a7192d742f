"""What resume states, journal, gates and tracking cost a whole run: the quickstart with all of it on, and off.

    python scripts/bench_all_on.py [ROUNDS] [--without-third]      prints the table of docs/results/all_on.md

Each run is a process of its own, by turns with its counterparts, in one folder with one MLflow database, as a user's
runs are; every round gives one ratio of CPU time (all threads) and one of wall time. ``on`` is what
`dptrain train experiment=quickstart` does; ``plain`` keeps no resume state and no journal and looks at no gate, and
tells MLflow what ``on`` tells it. ``plain, no MLflow`` shows what MLflow itself costs. Signing is on in all: a bundle
cannot be left unsigned.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

RUN = ["train", "experiment=quickstart"]
PLAIN = ["checkpoint.every=0", "gate=off"]
WAYS = {"on": [], "plain": PLAIN, "plain, no MLflow": [*PLAIN, "tracking=none"]}


def spent(folder: Path, overrides: list[str], name: str) -> tuple[float, float]:
    """(CPU seconds, wall seconds) of one run in a process of its own."""
    environment = {**os.environ, "DPTRAIN_HOME": str(folder / "home")}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-c", "from dptrain.cli import main; main()", *RUN, f"run.dir={name}", *overrides]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    took = time.perf_counter() - start
    if done.returncode or not (folder / name / "result.json").is_file():
        sys.exit(f"dptrain {' '.join(RUN + overrides)} ended with {done.returncode}: {done.stderr[-500:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, took


def main(rounds: int) -> None:
    """Runs every way once to make the database and to warm the disk's cache, then all of them by turns."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for place, overrides in enumerate(WAYS.values()):
            spent(folder, overrides, f"warm-{place}")
        for number in range(rounds):
            for way in list(WAYS)[:: 1 if number % 2 == 0 else -1]:
                found[way].append(spent(folder, WAYS[way], f"r{number}-{list(WAYS).index(way)}"))
            ratio = np.array(found["on"][-1]) / np.array(found["plain"][-1])
            print(f"round {number + 1} of {rounds}: CPU {ratio[0]:.3f}, wall {ratio[1]:.3f}", file=sys.stderr)
    print("| way | CPU s | wall s | CPU, beside plain | wall, beside plain |")
    print("|---|---|---|---|---|")
    plain = np.array(found["plain"])
    for name in WAYS:
        mine = np.array(found[name])
        ratios = np.median(mine / plain, axis=0)
        low, high = np.min(mine / plain, axis=0), np.max(mine / plain, axis=0)
        cells = [f"{ratios[i]:.3f} [{low[i]:.3f}, {high[i]:.3f}]" for i in (0, 1)]
        print(f"| {name} | {np.median(mine[:, 0]):.2f} | {np.median(mine[:, 1]):.2f} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    if "--without-third" in sys.argv:
        del WAYS["plain, no MLflow"]
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    main(numbers[0] if numbers else 6)
