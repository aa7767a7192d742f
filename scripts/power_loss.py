"""Cuts the power of training runs: un-synced writes are dropped, the run is resumed, a witness outside counts.

    python scripts/power_loss.py [--points 1000] [--seed 0] [--minutes 60]

One run is recorded call by call (``disk_recorder.py``); the power is then cut behind any of its calls, as often as one
likes: ``disk_model.py`` makes the disk that is left, either with nothing but what was synced, or with some of the rest
as well. Half of the cuts are at a boundary of a step, a state's writing, settling or the bundle, half anywhere. On each
disk the count is compared with the noise that had left by then, the newest state is opened, and the run is resumed to
its end. Some of the resumed runs are recorded, too, and cut again. Bars and runs are those of ``kill_resume.py``; exit
code 1 where one is missed. Linux and strace only. Results: docs/results/resume.md.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import watched_runs as runs
from disk_model import Disk
from disk_recorder import Call, Replay, record
from kill_resume import attempt

from dptrain.cli import recipe
from dptrain.errors import DptrainError

RESUMED_AGAIN = 0.1
"""Share of the disks on which the resumed run is recorded and cut as well."""


class Told(runs.Witness):
    """Witness of a recorded run: boundaries are told, too, and nobody dies."""

    def pass_by(self, where: str) -> None:
        """Tells where the run has come to."""
        os.write(self._told, b"@" + where.encode())


@dataclass
class Recording:
    """A run, call by call, and what had been released and opened before it began."""

    calls: list[Call]
    base: Path
    """A copy of the disk as it was."""
    run_id: str
    counted: bool
    witness: int
    released: int = 0
    over: int = 0
    addresses: Counter[bytes] = field(default_factory=Counter)
    losses: int = 0
    """Power losses before it."""


@dataclass
class Tally(runs.Tally):
    """What came of all cuts."""

    names: ClassVar[dict[str, str]] = {
        "under": "counts below what was released",
        "unreadable": "disks that cannot be used",
        "reused": "keystream addresses opened twice",
        "beyond": "runs beyond their plan or statement",
    }
    cuts: Counter[str] = field(default_factory=Counter)
    variants: Counter[str] = field(default_factory=Counter)
    unborn: int = 0
    resumed: int = 0
    finished: int = 0


class Bench:
    """One disk at one place: runs are recorded on it, cut, and resumed.

    Args:
        place: an empty folder; the disk is its ``disk``.
    """

    def __init__(self, place: Path, seed: int) -> None:
        self.root, self._place = place / "disk", place
        self.chance, self.tally = random.Random(seed), Tally()
        self.root.mkdir()
        self._number = 0

    def record(self, work: Callable[[], Any], run_id: str, counted: bool) -> Recording:
        """Runs ``work`` on the disk as it stands."""
        self._number += 1
        base = self._place / f"base-{self._number}"
        shutil.copytree(self.root, base, symlinks=True)
        witness = os.open(os.devnull, os.O_WRONLY)

        def watched(told: int) -> None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            Told(told, "never", 1).install()
            work()

        calls = record(watched, witness, self._place / "strace.log")
        return Recording(calls, base, run_id, counted, witness)

    def fresh_run(self, run_id: str, counted: bool) -> Recording:
        """A run from its first call on an empty disk: room, keys, ledger and all."""
        self._empty()
        return self.record(lambda: recipe("train").run(self._settings(run_id, counted)), run_id, counted)

    def cut(self, recording: Recording, at: int, where: str, torn: bool) -> Recording | None:
        """The power goes behind call ``at``; the run is resumed on what is left. Now and then that is recorded."""
        tally, run = self.tally, self.root / "runs" / recording.run_id
        released, addresses = self._lose(recording, at, torn)
        tally.cuts[where] += 1
        tally.variants["some un-synced writes survive" if torn else "no un-synced write survives"] += 1
        name = (
            f"{recording.run_id}, behind call {at} of {len(recording.calls)} ({where}), {'torn' if torn else 'strict'}"
        )
        try:
            on_disk = runs.counted_steps(self.root / "runs", recording.run_id, recording.counted)
            # No private row is in runs that a journal counts; what no file of theirs is left of cannot go on either.
            lost = not recording.counted and not runs.has_a_state(run)
            tally.count("under", on_disk < released and not lost, name)
            tally.most_over = max(tally.most_over, on_disk - released - recording.over)
            if runs.has_finished(run):
                tally.finished += 1
                tally.conclude(run, released, on_disk, addresses, name)
                return None
            if not runs.has_a_state(run):
                tally.unborn += 1
                tally.count("beyond", released > 0, name)
                self._settings_work(recording, name)
                return None
            tally.resumed += 1
            tally.count("unreadable", runs.state_is_broken(run, on_disk), name)
            go_on = recipe("train").go_on
            if recording.losses < 2 and self.chance.random() < RESUMED_AGAIN:
                again = self.record(lambda: go_on(str(run), []), recording.run_id, recording.counted)
                again.released, again.addresses, again.losses = released, addresses, recording.losses + 1
                again.over = on_disk - released
                return again
            _, sent = attempt(lambda: go_on(str(run), []), "never", 1, 0.0)
        except (DptrainError, RuntimeError) as error:
            tally.count("unreadable", True, f"{name}: {error}")
            return None
        addresses.update(runs.addresses_in(sent))
        total = released + runs.releases_in(sent)
        on_disk = runs.counted_steps(self.root / "runs", recording.run_id, recording.counted)
        tally.conclude(run, total, on_disk, addresses, name)
        return None

    def _lose(self, recording: Recording, at: int, torn: bool) -> tuple[int, Counter[bytes]]:
        """Puts the disk there that a power loss leaves; (releases until then, addresses opened until then)."""
        self._empty()
        for entry in recording.base.iterdir():
            shutil.copytree(entry, self.root / entry.name) if entry.is_dir() else shutil.copy2(entry, self.root)
        disk = Disk(self.root)
        replay = Replay(disk, str(Path.cwd()), recording.witness)
        released, addresses = recording.released, Counter(recording.addresses)
        for call in recording.calls[: at + 1]:
            told = replay.take(call)
            if told is not None and not told.startswith(b"@"):
                released += told[:1] == b"n"
                addresses.update([told] if told[:1] == b"k" else [])
        self.tally.released += released - recording.released
        disk.image(self.root, self.chance if torn else None)
        return released, addresses

    def _settings_work(self, recording: Recording, name: str) -> None:
        """What is left of a room in which nothing was released must not keep anybody from another run."""
        other = self._settings(f"{recording.run_id}-other", recording.counted)
        attempt(lambda: recipe("train").run(other), "never", 1, 0.0)

    def _settings(self, run_id: str, counted: bool) -> Any:
        return runs.settings(self.root / "runs", run_id, counted)

    def _empty(self) -> None:
        for entry in self.root.iterdir():
            shutil.rmtree(entry)


def places(recording: Recording) -> tuple[list[tuple[int, str]], list[int]]:
    """(calls behind which a boundary lies, with its name; every other call that touches a disk)."""
    told, rest = [], []
    for number, call in enumerate(recording.calls):
        text = call.texts[0] if call.name == "write" and call.texts else b""
        if text.startswith(b"@") and call.words[0] == str(recording.witness):
            told.append((number, text[1:].decode()))
        elif call.name not in ("close", "lseek", "mmap", "fcntl", "dup"):
            rest.append(number)
    return told, rest


def harness(points: int, seed: int, folder: Path, minutes: float = math.inf) -> Tally:
    """Carries out the cuts, or what of them the time allows. Afterwards the process is good for nothing else."""
    with tempfile.TemporaryDirectory() as warm:
        os.environ["DPTRAIN_HOME"] = str(Path(warm, "home"))
        runs.warm_up(Path(warm, "runs"))
    bench = Bench(folder, seed)
    os.environ["DPTRAIN_HOME"] = str(bench.root / "home")
    end = time.monotonic() + 60 * minutes
    recordings = [bench.fresh_run("counted", True), bench.fresh_run("journal", False)]
    while sum(bench.tally.cuts.values()) < points and time.monotonic() < end:
        chance = bench.chance
        recording = recordings[1] if chance.random() < 0.25 else chance.choice([recordings[0], *recordings[2:]])
        told, rest = places(recording)
        at, where = chance.choice(told) if chance.random() < 0.5 else (chance.choice(rest), "anywhere")
        again = bench.cut(recording, at, where, torn=chance.random() < 0.4)
        if again is not None:
            recordings.append(again)
    return bench.tally


def work(points: int, seed: int, minutes: float) -> tuple[list[str], Tally]:
    """What the script does; (lines about its cuts, tally)."""
    with tempfile.TemporaryDirectory() as name:
        tally = harness(points, seed, Path(name).resolve(), minutes)
    first = [f"power losses                           {sum(tally.cuts.values())}"]
    first += [f"lost {place:20} {count}" for place, count in sorted(tally.cuts.items())]
    first += [f"{variant:38} {count}" for variant, count in sorted(tally.variants.items())]
    ends = f"lost before the first state {tally.unborn}, behind the end {tally.finished}"
    return [*first, f"resumed {tally.resumed} times; {ends}"], tally


def main() -> int:
    return runs.carry_out(__doc__, "points", 1000, work)


if __name__ == "__main__":
    sys.exit(main())
