"""Kills training runs with SIGKILL, resumes them, kills them again; a witness outside counts what was released.

    python scripts/kill_resume.py [--kills 1000] [--seed 0] [--minutes 60]

Each run is ``dptrain train`` on a few made-up rows in a forked process, counted in a ledger (three of four) or in its
own journal, with leases of three steps and a state after every step. It is killed at a random moment or at a boundary:
of a step (intent, noise, optimizer), of a state's writing (its folder, its two files, its rename, the removal of old
ones), of settling, of the bundle. Then ``resume=RUN`` takes it up, is killed again, and so on until it finishes.

Before anything happens that counts, a record goes down a pipe: one for every noise vector that leaves the sampler, one
for every address of a keystream that is opened, as a hash of key, purpose and step. After each death the count on disk
is compared with the records of all attempts, and the newest state is opened. Exit code 1 if a step is missing from the
count, more than a lease is counted too many for a kill, a state does not open, or an address was opened twice.
Results: docs/results/resume.md.
"""

from __future__ import annotations

import math
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import watched_runs as runs
from watched_runs import PLACES, Witness

from dptrain.cli import recipe

PATIENCE = 12
"""Kills after which a run is left alone to finish."""


@dataclass
class Tally(runs.Tally):
    """What came of all kills."""

    names: ClassVar[dict[str, str]] = {
        "under": "counts below what was released",
        "unreadable": "states that do not open",
        "reused": "keystream addresses opened twice",
        "beyond": "runs beyond their plan or statement",
    }
    kills: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    """That an attempt takes when nobody kills it."""
    runs: int = 0
    resumed: int = 0
    unborn: int = 0
    """Runs killed before they had a state to go on from; nothing may have been released by then."""


def attempt(work: Callable[[], Any], place: str, at: int, wait: float) -> tuple[bool, list[bytes]]:
    """Runs ``work`` in a forked process that is killed; (whether it came to its end, the records it sent)."""

    def beside(process: int) -> None:
        if place == "random":
            time.sleep(wait)
            os.kill(process, signal.SIGKILL)

    status, ending, records = runs.forked(lambda told: Witness(told, place, at), work, beside)
    if os.WIFEXITED(status) and ending != "finished":
        raise RuntimeError(f"an attempt failed by itself: {ending}")
    return os.WIFEXITED(status), records


def trial(folder: Path, run_id: str, chance: random.Random, tally: Tally, counted: bool, most: int) -> int:
    """One run, killed and resumed until it finishes; the number of kills that hit it."""
    train, path = recipe("train"), folder / run_id
    released, over, kills, addresses = 0, 0, 0, Counter[bytes]()
    tally.runs += 1
    while True:
        place = "random" if chance.random() < 0.5 else chance.choice(PLACES)
        if kills >= min(most, PATIENCE):
            place = "never"
        fresh = not path.exists()
        work = (
            (lambda: train.run(runs.settings(folder, run_id, counted)))
            if fresh
            else (lambda: train.go_on(str(path), []))
        )
        once = place.endswith(("settle", "bundle"))
        ended, records = attempt(work, place, 1 if once else chance.randint(1, 6), chance.random() * tally.seconds)
        released += runs.releases_in(records)
        addresses.update(runs.addresses_in(records))
        on_disk = runs.counted_steps(folder, run_id, counted)
        tally.count("under", on_disk < released, f"{run_id} {place}: {on_disk} counted, {released} released")
        if not ended:
            kills += 1
            tally.kills[place] += 1
            tally.most_over = max(tally.most_over, on_disk - released - over)
            over = on_disk - released
        if ended or runs.has_finished(path):  # a kill may come when all is done
            tally.conclude(path, released, on_disk, addresses, run_id)
            break
        if not runs.has_a_state(path):
            tally.unborn += 1
            tally.count("beyond", released > 0, f"{run_id}: no state, {released} released")
            break
        tally.resumed += 1
        tally.count("unreadable", runs.state_is_broken(path, on_disk), f"{run_id} {place}")
    tally.released += released
    return kills


def harness(kills: int, seed: int, folder: Path, minutes: float = math.inf) -> Tally:
    """Carries out the kills, or what of them the time allows. Afterwards the process is good for nothing else."""
    chance, tally, number = random.Random(seed), Tally(), 0
    runs.warm_up(folder)
    start = time.monotonic()
    attempt(lambda: recipe("train").run(runs.settings(folder, "timed", True)), "never", 1, 0.0)
    tally.seconds = time.monotonic() - start
    end = time.monotonic() + 60 * minutes
    while sum(tally.kills.values()) < kills and time.monotonic() < end:
        left = kills - sum(tally.kills.values())
        trial(folder, f"k{number}", chance, tally, number % 4 != 3, left)
        number += 1
    return tally


def work(kills: int, seed: int, minutes: float) -> tuple[list[str], Tally]:
    """What the script does; (lines about its kills, tally)."""
    with tempfile.TemporaryDirectory() as name:
        os.environ["DPTRAIN_HOME"] = str(Path(name, "home"))
        tally = harness(kills, seed, Path(name, "runs"), minutes)
    places = [f"killed {place:18} {count}" for place, count in sorted(tally.kills.items())]
    born = f"runs {tally.runs}, resumed {tally.resumed} times; killed before their first state {tally.unborn}"
    return [f"kills                                  {sum(tally.kills.values())}", *places, born], tally


def main() -> int:
    return runs.carry_out(__doc__, "kills", 1000, work)


if __name__ == "__main__":
    sys.exit(main())
