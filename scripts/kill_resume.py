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

import argparse
import hashlib
import math
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dptrain.checkpoint import resume_state
from dptrain.checkpoint.resume_state import read_newest
from dptrain.checkpoint.sealing_key import key_ring
from dptrain.checkpoint.step_journal import StepJournal
from dptrain.cli import recipe
from dptrain.config import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LedgerConfig,
    ModelConfig,
    PrivacyConfig,
    RunConfig,
    TrackingConfig,
    TrainConfig,
)
from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.errors import ConfigError
from dptrain.keystream import Keystream
from dptrain.privacy.ledger import open_ledger
from dptrain.privacy.plan import Plan
from dptrain.registry import sources
from dptrain.run_folder import read_json
from dptrain.training import loop, release
from dptrain.training.budget import Budget

STEPS, UNITS, LEASE, PATIENCE = 12, 40, 3, 12
"""Steps of a run, units, steps of a lease, kills after which a run is left alone to finish."""
BOUNDARIES = ("intent", "noise", "optimizer", "state", "facts", "tensors", "rename", "clean-up", "settle", "bundle")
PLACES = [f"{side} {name}" for name in BOUNDARIES for side in ("before", "after")]
RECORD = 17
"""Bytes of a record: what happened, and 16 bytes of a hash."""


@sources.register("kill_people")
def people(config: DataConfig, seed: int) -> Source:
    """Made-up rows, the same every time."""

    def load() -> Splits:
        x = torch.randn(UNITS + 20, 4, generator=torch.Generator().manual_seed(7))
        y = (x[:, 0] > 0).long()
        return Splits(train=Rows(x[:UNITS], y[:UNITS]), public=Rows(x[UNITS:], y[UNITS:]))

    info = SourceInfo(name="kills", task="binary", input_shape=(4,), num_classes=2, public_size=UNITS)
    return Source(info, load)


@dataclass
class Tally:
    """What came of all kills."""

    kills: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    """That an attempt takes when nobody kills it."""
    runs: int = 0
    resumed: int = 0
    unborn: int = 0
    """Runs killed before they had a state to go on from; nothing may have been released by then."""
    released: int = 0
    under: int = 0
    most_over: int = 0
    """Steps counted and not released, by one kill."""
    unreadable: int = 0
    reused: int = 0
    beyond: int = 0
    """Runs that released more than they had planned, or whose statement says fewer than they released."""

    @property
    def holds(self) -> bool:
        """Whether nothing went wrong."""
        return not (self.under or self.unreadable or self.reused or self.beyond) and self.most_over <= LEASE


def settings(folder: Path, run_id: str, counted: bool) -> TrainConfig:
    """A run's config; the ledger's account bears any number of them."""
    return TrainConfig(
        data=DataConfig(name="kill_people", all_public=not counted),
        model=ModelConfig(name="linear"),
        privacy=PrivacyConfig(expected_batch_size=10, noise_multiplier=4.0, epsilon=None, epochs=None, steps=STEPS),
        evaluation=EvaluationConfig(every=4),
        tracking=TrackingConfig(name="none"),
        run=RunConfig(id=run_id, dir=str(folder / run_id), purpose="trial" if counted else None),
        ledger=LedgerConfig(epsilon_limit=1000.0, lease_steps=LEASE),
        checkpoint=CheckpointConfig(every=1e-9),
    )


class Deadly:
    """Hooks of a process that is to die: what it witnesses, and where it kills itself."""

    def __init__(self, witness: int, place: str, at: int) -> None:
        self._witness, self._place, self._left = witness, place, at

    def tell(self, what: bytes, facts: bytes) -> None:
        """One record, in one write: whole or not at all."""
        os.write(self._witness, what + hashlib.sha256(facts).digest()[:16])

    def die(self, where: str) -> None:
        """Kills this process at the ``at``-th time it comes by its place."""
        if where == self._place:
            self._left -= 1
            if self._left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, name: str, boundary: str) -> None:
        """Puts the two sides of a boundary around a function."""
        inner: Callable[..., Any] = getattr(owner, name)

        def outer(*args: Any, **more: Any) -> Any:
            self.die(f"before {boundary}")
            found = inner(*args, **more)
            self.die(f"after {boundary}")
            return found

        setattr(owner, name, outer)

    def install(self) -> None:
        """Hooks everything; the process is never used for anything else."""
        opened, released = Keystream.open, loop.Trainer._release

        def open_stream(stream: Keystream, purpose: Any, step: int) -> Any:
            self.tell(b"k", bytes(stream._cipher.key) + bytes([purpose]) + step.to_bytes(6, "big"))
            return opened(stream, purpose, step)

        def release_step(trainer: Any, step: int, total: Any) -> None:
            pieces = trainer.noise.pieces

            def watched(number: int, count: int) -> Iterator[Tensor]:
                self.die("before noise")
                self.tell(b"n", os.urandom(16))  # first: a vector may be counted that never left, not the reverse
                yield from pieces(number, count)

            trainer.noise.pieces = watched
            released(trainer, step, total)
            trainer.noise.pieces = pieces
            self.die("after noise")

        Keystream.open = open_stream  # type: ignore[method-assign]
        loop.Trainer._release = release_step  # type: ignore[method-assign]
        self.around(torch.optim.SGD, "step", "optimizer")
        self.around(Budget, "intend", "intent")
        self.around(Budget, "settle", "settle")
        self.around(resume_state, "write_state", "state")
        self.around(release, "save_bundle", "bundle")
        self._hook_state_files()

    def _hook_state_files(self) -> None:
        write, rename, remove = resume_state.write_sealed, os.rename, resume_state.shutil.rmtree

        def write_one(path: Path, *rest: Any) -> None:
            name = path.name.removesuffix(".sealed")
            self.die(f"before {name}")
            write(path, *rest)
            self.die(f"after {name}")

        def rename_state(old: Any, new: Any) -> None:
            is_state = str(Path(old).name).endswith(".tmp") and Path(old).parent.name == "resume"
            if is_state:
                self.die("before rename")
            rename(old, new)
            if is_state:
                self.die("after rename")

        def remove_tree(path: Any, *rest: Any, **more: Any) -> None:
            self.die("before clean-up")
            remove(path, *rest, **more)
            self.die("after clean-up")

        resume_state.write_sealed = write_one
        os.rename = rename_state
        resume_state.shutil.rmtree = remove_tree  # type: ignore[assignment]


def attempt(work: Callable[[], Any], place: str, at: int, wait: float) -> tuple[bool, list[bytes]]:
    """Runs ``work`` in a forked process that is killed; (whether it came to its end, the records it sent)."""
    out, into = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(out)
        code = 1
        try:
            Deadly(into, place, at).install()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(into)
    if place == "random":
        time.sleep(wait)
        os.kill(process, signal.SIGKILL)
    with os.fdopen(out, "rb") as pipe:
        sent = pipe.read()
    _, status = os.waitpid(process, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("an attempt failed by itself: see its traceback above")
    return os.WIFEXITED(status), [sent[i : i + RECORD] for i in range(0, len(sent), RECORD)]


def counted_steps(folder: Path, run_id: str, counted: bool) -> int:
    """Steps that the ledger, or the run's journal, says were executed."""
    if not counted:
        journal = folder / run_id / "resume" / "journal"
        if not journal.exists():
            result = folder / run_id / "result.json"  # a finished run has dropped its journal
            return read_json(result)["steps"] if result.exists() else 0
        held = StepJournal(journal)
        held.release()
        return held.executed
    ledger = open_ledger(None)
    found = sum(entry.charged_steps for entry in ledger.state.entries.values() if entry.run_id == run_id)
    ledger.close()
    return found


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
        work = (lambda: train.run(settings(folder, run_id, counted))) if fresh else (lambda: train.go_on(str(path), []))
        once = place.endswith(("settle", "bundle"))
        ended, records = attempt(work, place, 1 if once else chance.randint(1, 6), chance.random() * tally.seconds)
        released += sum(record[:1] == b"n" for record in records)
        addresses.update(record for record in records if record[:1] == b"k")
        on_disk = counted_steps(folder, run_id, counted)
        tally.under += on_disk < released
        if not ended:
            kills += 1
            tally.kills[place] += 1
            tally.most_over = max(tally.most_over, on_disk - released - over)
            over = on_disk - released
        if ended or _has_finished(path):  # a kill may come when all is done
            said = read_json(path / "statement.json")["sampling"]["steps_done"]
            tally.beyond += released > STEPS or said < released or on_disk > STEPS
            break
        if not _has_a_state(path):
            tally.unborn += 1
            tally.beyond += released > 0
            break
        tally.resumed += 1
        tally.unreadable += _state_is_broken(path, on_disk)
    tally.released += released
    tally.reused += sum(count > 1 for count in addresses.values())
    return kills


def _has_finished(path: Path) -> bool:
    return (path / "result.json").exists() and read_json(path / "result.json")["status"] == "finished"


def _has_a_state(path: Path) -> bool:
    room = path / "resume"
    return room.is_dir() and any(not entry.name.startswith(".") and entry.is_dir() for entry in room.iterdir())


def _state_is_broken(path: Path, on_disk: int) -> bool:
    try:
        state, troubles = read_newest(path / "resume", key_ring(None))
    except ConfigError:
        return True
    return bool(troubles) or state.facts["steps"] > on_disk


def harness(kills: int, seed: int, folder: Path, minutes: float = math.inf) -> Tally:
    """Carries out the kills, or what of them the time allows. Afterwards the process is good for nothing else."""
    torch.set_num_threads(1)
    chance, tally, number = random.Random(seed), Tally(), 0
    Plan.epsilon_at, Plan.odometer = cache(Plan.epsilon_at), _cached_odometer(Plan.odometer)  # type: ignore[method-assign]
    for counted in (True, False):  # prices and imports once, for all children
        recipe("train").run(settings(folder, f"warm-{counted}", counted))
    tally.seconds = _seconds_of(lambda: recipe("train").run(settings(folder, "timed", True)))
    end = time.monotonic() + 60 * minutes
    while sum(tally.kills.values()) < kills and time.monotonic() < end:
        left = kills - sum(tally.kills.values())
        trial(folder, f"k{number}", chance, tally, number % 4 != 3, left)
        number += 1
    return tally


def _cached_odometer(odometer: Callable[[Plan, list[int]], list[float]]) -> Callable[[Plan, list[int]], list[float]]:
    known = cache(lambda plan, counts: odometer(plan, list(counts)))
    return lambda plan, counts: list(known(plan, tuple(counts)))


def _seconds_of(work: Callable[[], Any]) -> float:
    start = time.monotonic()
    attempt(work, "never", 1, 0.0)
    return time.monotonic() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf)
    given = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        os.environ["DPTRAIN_HOME"] = str(Path(name, "home"))
        tally = harness(given.kills, given.seed, Path(name, "runs"), given.minutes)
    print(f"kills                                  {sum(tally.kills.values())}")
    for place, count in sorted(tally.kills.items()):
        print(f"killed {place:18} {count}")
    print(f"runs {tally.runs}, resumed {tally.resumed} times; killed before their first state {tally.unborn}")
    print(f"noise releases seen by the witness     {tally.released}")
    print(f"counts below what was released         {tally.under}")
    print(f"most steps counted too many by a kill  {tally.most_over} (lease: {LEASE})")
    print(f"states that do not open                {tally.unreadable}")
    print(f"keystream addresses opened twice       {tally.reused}")
    print(f"runs beyond their plan or statement    {tally.beyond}")
    print(f"seconds                                {time.monotonic() - start:.0f}")
    return int(not tally.holds)


if __name__ == "__main__":
    sys.exit(main())
