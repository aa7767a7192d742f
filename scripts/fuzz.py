"""Feeds broken and hostile files to everything that reads one, and counts what must not happen.

    python scripts/fuzz.py [--cases 20000] [--seed 0] [--seconds 3000] [--only ledger]

Kinds of cases: files of a release bundle, bytes and structure, unsigned and signed by a trusted key; statements, the
same; the ledger's SQLite file, and rows that a holder of the key might write; configs and overrides; the list of
revoked keys, remembered heads and public keys; a killed run's folder that is taken up again, the quarantine, and
weights that torch.save wrote. A case is in order when what reads it returns, or refuses in one line
(a DptrainError). Counted besides: code that ran (canaries in pickles, YAML tags, targets and templates, seen by an
audit hook), files that changed though they were only read, and cases that took over ten CPU seconds. Exit code 1 if
anything was counted. Results: docs/results/fuzz.md.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fuzz_broken import RAN
from fuzz_cases import KINDS, Room

from dptrain.errors import DptrainError

SLOW = 10.0
"""CPU seconds that one case may take."""
FORBIDDEN = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class"}
FORBIDDEN |= {"socket.connect", "os.putenv", "os.symlink", "os.chmod", "shutil.rmtree"}


@dataclass
class Tally:
    """What came of all cases."""

    cases: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    tracebacks: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    long_lines: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    slowest: float = 0.0

    @property
    def bad(self) -> list[str]:
        """Everything that must not have happened."""
        return self.tracebacks + self.ran + self.lost + self.long_lines + self.slow


class Watch:
    """An audit hook that notes forbidden events while a case is on; Python has no way to take a hook off again."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        if self.on and (event in FORBIDDEN or (event == "os.mkdir" and str(given[0]).endswith(RAN))):
            self.seen.append(f"{event} {str(given)[:80]}")


_WATCH: list[Watch] = []


def watch() -> Watch:
    """The process's one hook."""
    if not _WATCH:
        _WATCH.append(Watch())
    return _WATCH[0]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Files of a case that reading must not change; a database's own side files are its business."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(("-wal", "-shm", ".lock"))
    }


def harness(
    cases: int, seed: int, folder: Path, only: str | None = None, seconds: float | None = None, first: int = 0
) -> Tally:
    """Runs so many cases, or as many as fit the time; each in a working directory of its own.

    Args:
        cases: how many.
        seed: of the cases; the same seed gives the same cases.
        folder: an empty folder, absolute.
        only: a kind's name, or the beginning of one; None for all by their shares.
        seconds: stop after so long.
        first: number of the first case: a run that was cut off is gone on with.
    """
    tally, hook, held = Tally(), watch(), (Path.cwd(), os.environ.get("DPTRAIN_HOME"))
    room = Room(folder)
    kinds = [name for name in KINDS if only is None or name.startswith(only)]
    shares = [KINDS[name][1] for name in kinds]
    began = time.monotonic()
    try:
        for number in range(first, cases):
            if seconds is not None and time.monotonic() - began > seconds:
                break
            draw = random.Random(f"{seed} {number}")
            kind = draw.choices(kinds, shares)[0]
            bad = len(tally.bad)
            _one(kind, f"{kind}, case {number}", room, draw, tally, hook)
            if len(tally.bad) > bad or (number + 1) % 1000 == 0:
                new = []
                print(f"{number + 1:,} cases, {len(tally.bad)} bad", *new, file=sys.stderr, flush=True)
    finally:
        os.chdir(held[0])
        os.environ.pop("DPTRAIN_HOME") if held[1] is None else os.environ.update(DPTRAIN_HOME=held[1])
    return tally


def _one(kind: str, name: str, room: Room, draw: random.Random, tally: Tally, hook: Watch) -> None:
    case = room.fresh()
    os.chdir(case)
    try:
        read = KINDS[kind][0](room, case, draw)
    except DptrainError:
        read = None  # the case could not even be made: nothing to read
    before = snapshot(case)
    tally.cases[kind] += 1
    hook.seen, hook.on = [], True
    start = time.process_time()
    try:
        if read is not None:
            read()
    except DptrainError as error:
        tally.refused[kind] += 1
        if "\n" in str(error) or not str(error):
            tally.long_lines.append(f"{name}: {str(error)[:200]!r}")
    except Exception:
        tally.tracebacks.append(f"{name}: {traceback.format_exc(limit=-4)}")
    finally:
        hook.on = False
        took = time.process_time() - start
    tally.slowest = max(tally.slowest, took)
    if took > SLOW:
        tally.slow.append(f"{name}: {took:.1f} s")
    if hook.seen or (case / RAN).exists() or "antigravity" in sys.modules:
        tally.ran.append(f"{name}: {hook.seen or RAN}")
    after = snapshot(case)
    changed = sorted(file for file in before if after.get(file) != before[file])
    its_own = {"ledger": "home/ledger.db", "run to resume": "run/resume/journal"}.get(kind)  # mended by their readers
    if changed and not (changed == [its_own] and its_own in after):
        tally.lost.append(f"{name}: {changed}")
    shutil.rmtree(case)


def main() -> int:
    """Prints a table and everything that must not have happened."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=None)
    parser.add_argument("--only", default=None)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a disk's syncs would take most of the time
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        tally = harness(given.cases, given.seed, Path(folder).resolve(), given.only, given.seconds, given.first)
    print("| kind | cases | refused in one line | read all the same |\n|---|---|---|---|")
    for kind, count in tally.cases.items():
        print(f"| {kind} | {count:,} | {tally.refused[kind]:,} | {count - tally.refused[kind]:,} |")
    print(f"\n{sum(tally.cases.values()):,} cases in {time.monotonic() - began:.0f} s, slowest {tally.slowest:.1f} s:")
    print(f"{len(tally.tracebacks)} tracebacks, {len(tally.ran)} ran code, {len(tally.lost)} changed a file that was")
    print(f"only read, {len(tally.long_lines)} refused in more than a line, {len(tally.slow)} took over {SLOW:g} s")
    for line in tally.bad:
        print(f"\n{line}")
    return 1 if tally.bad else 0


if __name__ == "__main__":
    sys.exit(main())
