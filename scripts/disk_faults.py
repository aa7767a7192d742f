"""Takes the disk away from training runs: full, read-only, vanished; a real ext4 file system; the run is left to end.

    python scripts/disk_faults.py [--points 60] [--seed 0] [--minutes 60]

Each run of ``kill_resume.py`` has its room and its folder on a file system of 16 MiB in a file, mounted for it (Linux,
root). At a random boundary of a step, a state's writing, settling or the bundle the disk is

    full        a file takes every block that is left
    read-only   the file system is aborted, as after an error of its own: writes say EROFS
    vanished    the file system is shut down without a flush (EXT4_IOC_SHUTDOWN): everything says EIO, and what was not
                synced is lost, as if the plug had been pulled

and the process is left to end by itself. Then the disk is put right (space freed; unmounted and mounted, which replays
its journal), the count is compared with the noise that left the process, the newest state is opened, a bundle that is
there must verify, and the run is resumed to its end. Exit code 1 where a process ended in a traceback, a bundle came
after the fault and is not whole, or a bar of ``kill_resume.py`` is missed. Results: docs/results/resume.md.
"""

from __future__ import annotations

import fcntl
import math
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import watched_runs as runs

from dptrain.checkpoint.bundle import load_verified
from dptrain.cli import recipe
from dptrain.errors import DptrainError

FAULTS = ("full", "read-only", "vanished")
SHUTDOWN, WITHOUT_FLUSH = 0x8004587D, 2
"""EXT4_IOC_SHUTDOWN, and its flag EXT4_GOING_FLAGS_NOLOGFLUSH (linux/ext4.h)."""


class Disk:
    """A file system in a file.

    Args:
        place: a folder for the file and the mount point.
    """

    def __init__(self, place: Path) -> None:
        self.root, self._image = place / "disk", place / "image"
        self.root.mkdir()
        with self._image.open("wb") as file:
            file.truncate(16 << 20)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", str(self._image))
        self.mount()

    def mount(self) -> None:
        """Makes it usable; replays its journal where it was torn away."""
        _run("mount", "-o", "loop", str(self._image), str(self.root))

    def unmount(self) -> None:
        """Takes it out."""
        _run("umount", str(self.root))

    def strike(self, fault: str) -> None:
        """The fault, now, for every process."""
        if fault == "full":
            with suppress(OSError), (self.root / "filler").open("wb", buffering=0) as file:
                while file.write(bytes(1024)):
                    pass
        elif fault == "read-only":
            _run("mount", "-o", "remount,abort", str(self.root))
        else:
            handle = os.open(self.root, os.O_RDONLY)
            fcntl.ioctl(handle, SHUTDOWN, struct.pack("I", WITHOUT_FLUSH))
            os.close(handle)

    def mend(self, fault: str) -> None:
        """Puts it right."""
        if fault == "full":
            (self.root / "filler").unlink()
        else:
            self.unmount()
            self.mount()


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")


class Struck(runs.Witness):
    """Hooks of a process whose disk fails at a place: the process goes on."""

    def __init__(self, told: int, place: str, at: int, fault: Callable[[], None]) -> None:
        super().__init__(told, place, at)
        self._fault = fault

    def strike(self) -> None:
        """Takes the disk away, and tells that first."""
        self.tell(b"!", b"")
        self._fault()


@dataclass
class Tally(runs.Tally):
    """What came of all faults."""

    names: ClassVar[dict[str, str]] = {
        "under": "counts below what was released",
        "unreadable": "states or disks that cannot be used",
        "broken_bundles": "bundles that are not whole",
        "reused": "keystream addresses opened twice",
        "beyond": "runs beyond their plan or statement",
        "tracebacks": "processes that ended in a traceback",
    }
    faults: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    """Runs that never came by the place."""
    endings: Counter[str] = field(default_factory=Counter)
    after: int = 0
    """Noise that left behind the fault: steps that were counted before it, or whose count the disk still took."""
    tracebacks: int = 0
    broken_bundles: int = 0


def attempt(work: Callable[[], object], place: str, at: int, fault: Callable[[], None]) -> tuple[str, list[bytes]]:
    """Runs ``work`` in a forked process whose disk is struck; (how it ended, the records it sent)."""
    _, ending, records = runs.forked(lambda told: Struck(told, place, at, fault), work, lambda process: None)
    return ending, records


def trial(disk: Disk, fault: str, run_id: str, counted: bool, chance: random.Random, tally: Tally) -> None:
    """One run, struck once; its disk mended; resumed to its end."""
    train, folder = recipe("train"), disk.root / "runs"
    path, place = folder / run_id, chance.choice(runs.PLACES)
    at = 1 if place.endswith(("settle", "bundle")) else chance.randint(1, 8)
    name = f"{run_id} {fault} {place} {at}"
    ending, records = attempt(
        lambda: train.run(runs.settings(folder, run_id, counted)), place, at, lambda: disk.strike(fault)
    )
    kinds = [record[:1] for record in records]
    if b"!" not in kinds:
        tally.missed += 1
        return
    disk.mend(fault)
    released = runs.releases_in(records)
    tally.faults[fault] += 1
    tally.after += kinds[kinds.index(b"!") :].count(b"n")
    tally.endings[ending.partition(":")[0]] += 1
    tally.count("tracebacks", ending.startswith("traceback"), f"{name}: {ending}")
    addresses = runs.addresses_in(records)
    try:
        on_disk = runs.counted_steps(folder, run_id, counted)
        tally.count("under", on_disk < released, f"{name}: {on_disk} counted, {released} released")
        if (path / "checkpoint").exists():
            load_verified(path)
        if not ending.startswith("finished"):
            tally.most_over = max(tally.most_over, on_disk - released)
        if not runs.has_finished(path):
            if runs.has_a_state(path):
                tally.count("unreadable", runs.state_is_broken(path, on_disk), name)
                ending, more = attempt(lambda: train.go_on(str(path), []), "never", 1, lambda: None)
                tally.count("unreadable", ending != "finished", f"{name}: resumed: {ending}")
                released += runs.releases_in(more)
                addresses.update(runs.addresses_in(more))
            else:
                tally.count("beyond", released > 0, f"{name}: no state, {released} released")
                return
        tally.conclude(path, released, runs.counted_steps(folder, run_id, counted), addresses, name)
        tally.released += released
    except DptrainError as error:
        tally.count("broken_bundles" if (path / "checkpoint").exists() else "unreadable", True, f"{name}: {error}")


def harness(points: int, seed: int, place: Path, minutes: float = math.inf) -> Tally:
    """Strikes so many runs, or as many as the time allows. Afterwards the process is good for nothing else."""
    chance, tally, number = random.Random(seed), Tally(), 0
    with tempfile.TemporaryDirectory() as warm:
        os.environ["DPTRAIN_HOME"] = str(Path(warm, "home"))
        runs.warm_up(Path(warm, "runs"))
    end = time.monotonic() + 60 * minutes
    while sum(tally.faults.values()) < points and time.monotonic() < end:
        room = place / f"d{number}"
        room.mkdir()
        disk = Disk(room)
        os.environ["DPTRAIN_HOME"] = str(disk.root / "home")
        try:
            trial(disk, FAULTS[number % 3], f"r{number}", number % 4 != 3, chance, tally)
        finally:
            disk.unmount()
        number += 1
    return tally


def work(points: int, seed: int, minutes: float) -> tuple[list[str], Tally]:
    """What the script does; (lines about its faults, tally)."""
    with tempfile.TemporaryDirectory() as name:
        tally = harness(points, seed, Path(name).resolve(), minutes)
    first = [f"disks taken away                       {sum(tally.faults.values())}"]
    first += [f"{kind:38} {count}" for kind, count in [*sorted(tally.faults.items()), *sorted(tally.endings.items())]]
    return [*first, f"noise that left behind the fault       {tally.after}"], tally


def main() -> int:
    return runs.carry_out(__doc__, "points", 60, work)


if __name__ == "__main__":
    sys.exit(main())
