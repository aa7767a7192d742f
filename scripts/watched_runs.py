"""Small training runs that are watched from outside: what kill_resume.py, power_loss.py and disk_faults.py share.

Each run is ``dptrain train`` on a few made-up rows in a forked process, counted in a ledger or in its own journal, with
leases of three steps and a state after every step. Before anything happens that counts, a record goes down a pipe: one
for every noise vector that leaves the sampler, one for every address of a keystream that is opened, as a hash of key,
purpose and step. What the disk says afterwards is compared with the records of all attempts (``Tally``).
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from dptrain.checkpoint import resume_state
from dptrain.checkpoint.resume_state import read_newest
from dptrain.checkpoint.sealing_key import key_ring
from dptrain.checkpoint.step_journal import StepJournal
from dptrain.cli import recipe
from dptrain.config import ModelConfig, RunConfig, TrainConfig
from dptrain.config_budget import LedgerConfig
from dptrain.config_checkpoint import CheckpointConfig
from dptrain.config_data import DataConfig
from dptrain.config_privacy import PrivacyConfig
from dptrain.config_tracking import TrackingConfig
from dptrain.config_tuning import EvaluationConfig
from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.errors import ConfigError, DptrainError, one_line
from dptrain.keystream import Keystream
from dptrain.privacy.ledger import open_ledger
from dptrain.privacy.plan import Plan
from dptrain.registry import sources
from dptrain.run_folder import read_json
from dptrain.training import loop, release
from dptrain.training.budget import Budget

STEPS, UNITS, LEASE = 12, 40, 3
"""Steps of a run, units, steps of a lease."""
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


@dataclass
class Tally:
    """What came of all runs, beside what was released; 0 everywhere but in ``released`` and ``most_over`` is right."""

    names: ClassVar[dict[str, str]] = {}
    """What a kind of wrong is called when it is printed, in order."""

    released: int = 0
    under: int = 0
    """Counts on disk below the noise that left."""
    most_over: int = 0
    """Steps counted and not released, by one strike."""
    unreadable: int = 0
    reused: int = 0
    beyond: int = 0
    """Runs that released more than they had planned, or whose statement says fewer than they released."""
    told: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether nothing went wrong."""
        return not any(getattr(self, kind) for kind in self.names) and self.most_over <= LEASE

    def count(self, kind: str, wrong: bool, name: str) -> None:
        """One more of a kind of wrong, where it is one."""
        if wrong:
            setattr(self, kind, getattr(self, kind) + 1)
            self.told.append(f"{kind}: {name}")

    def conclude(self, path: Path, released: int, counted: int, addresses: Counter[bytes], name: str) -> None:
        """Compares a run that finished with its records."""
        said = read_json(path / "statement.json")["sampling"]["steps_done"]
        wrong = released > STEPS or said < released or counted > STEPS
        self.count("beyond", wrong, f"{name}: {released} released, {said} stated, {counted} counted")
        self.count("reused", any(times > 1 for times in addresses.values()), name)

    def lines(self) -> list[str]:
        """For print: what went wrong, kind by kind; each case after them."""
        table = [f"noise releases seen by the witness     {self.released}"]
        table += [f"{said:38} {getattr(self, kind)}" for kind, said in self.names.items()]
        most = "most steps counted too many by a strike"
        return [*table, f"{most:38} {self.most_over} (lease: {LEASE})", *self.told]


class Witness:
    """Hooks of a process that something is to happen to: what it tells, and where it comes by.

    Args:
        told: the pipe's end that records go down.
        place: where it happens.
        at: the how manieth time.
    """

    def __init__(self, told: int, place: str, at: int) -> None:
        self._told, self._place, self._left = told, place, at

    def tell(self, what: bytes, facts: bytes) -> None:
        """One record, in one write: whole or not at all."""
        os.write(self._told, what + hashlib.sha256(facts).digest()[:16])

    def pass_by(self, where: str) -> None:
        """The process comes by a place; at the ``at``-th time it is struck, whatever that is."""
        if where == self._place:
            self._left -= 1
            if self._left == 0:
                self.strike()

    def strike(self) -> None:
        """Kills this process."""
        os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, name: str, boundary: str) -> None:
        """Puts the two sides of a boundary around a function."""
        inner: Callable[..., Any] = getattr(owner, name)

        def outer(*args: Any, **more: Any) -> Any:
            self.pass_by(f"before {boundary}")
            found = inner(*args, **more)
            self.pass_by(f"after {boundary}")
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
                self.pass_by("before noise")
                self.tell(b"n", os.urandom(16))  # first: a vector may be counted that never left, not the reverse
                yield from pieces(number, count)

            trainer.noise.pieces = watched
            released(trainer, step, total)
            trainer.noise.pieces = pieces
            self.pass_by("after noise")

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
            self.pass_by(f"before {name}")
            write(path, *rest)
            self.pass_by(f"after {name}")

        def rename_state(old: Any, new: Any) -> None:
            is_state = str(Path(old).name).endswith(".tmp") and Path(old).parent.name == "resume"
            if is_state:
                self.pass_by("before rename")
            rename(old, new)
            if is_state:
                self.pass_by("after rename")

        def remove_tree(path: Any, *rest: Any, **more: Any) -> None:
            self.pass_by("before clean-up")
            remove(path, *rest, **more)
            self.pass_by("after clean-up")

        resume_state.write_sealed = write_one
        os.rename = rename_state
        resume_state.shutil.rmtree = remove_tree  # type: ignore[assignment]


def forked(
    hooks: Callable[[int], Witness], work: Callable[[], Any], beside: Callable[[int], None]
) -> tuple[int, str, list[bytes]]:
    """Runs ``work`` in a forked process; (its wait status, how it says that it ended, the records it sent).

    Args:
        hooks: makes the witness of the pipe's end it is given.
        work: the run.
        beside: called with the process' id while it runs.
    """
    (out, into), (heard, say) = os.pipe(), os.pipe()
    process = os.fork()
    if process == 0:
        os.close(out)
        os.close(heard)
        hooks(into).install()
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        try:
            work()
            os.write(say, b"finished")
        except (DptrainError, OSError) as error:
            os.write(say, f"one line: {one_line(str(error))}".encode()[:2000])
        except BaseException as error:
            os.write(say, f"traceback: {type(error).__name__}: {one_line(str(error))}".encode()[:2000])
        finally:
            os._exit(0)
    os.close(into)
    os.close(say)
    beside(process)
    with os.fdopen(out, "rb") as pipe:
        sent = pipe.read()
    with os.fdopen(heard, "rb") as pipe:
        ending = pipe.read().decode(errors="replace")
    _, status = os.waitpid(process, 0)
    return status, ending, [sent[i : i + RECORD] for i in range(0, len(sent), RECORD)]


def addresses_in(records: Sequence[bytes]) -> Counter[bytes]:
    """Keystream addresses that were opened, and how often."""
    return Counter(record for record in records if record[:1] == b"k")


def releases_in(records: Sequence[bytes]) -> int:
    """Noise vectors that left."""
    return sum(record[:1] == b"n" for record in records)


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


def has_finished(path: Path) -> bool:
    """Whether the run of this folder says that it came to its end."""
    return (path / "result.json").exists() and read_json(path / "result.json")["status"] == "finished"


def has_a_state(path: Path) -> bool:
    """Whether there is a state to go on from."""
    room = path / "resume"
    return room.is_dir() and any(not entry.name.startswith(".") and entry.is_dir() for entry in room.iterdir())


def state_is_broken(path: Path, on_disk: int) -> bool:
    """Whether the newest state does not open, or knows of more steps than were counted."""
    try:
        state, troubles = read_newest(path / "resume", key_ring(None))
    except ConfigError:
        return True
    return bool(troubles) or state.facts["steps"] > on_disk


def warm_up(folder: Path) -> None:
    """Prices and imports once, for all children. Afterwards the process is good for nothing else."""
    torch.set_num_threads(1)
    Plan.epsilon_at, Plan.odometer = cache(Plan.epsilon_at), _cached_odometer(Plan.odometer)  # type: ignore[method-assign]
    for counted in (True, False):
        recipe("train").run(settings(folder, f"warm-{counted}", counted))


def _cached_odometer(odometer: Callable[[Plan, list[int]], list[float]]) -> Callable[[Plan, list[int]], list[float]]:
    known = cache(lambda plan, counts: odometer(plan, list(counts)))
    return lambda plan, counts: list(known(plan, tuple(counts)))


def carry_out(
    about: str | None, noun: str, most: int, work: Callable[[int, int, float], tuple[list[str], Tally]]
) -> int:
    """A script's command line: how many, which seed, how long; prints what came of it; the exit code.

    Args:
        about: the script's docstring.
        noun: what there is a number of, as an option.
        most: how many of them, unless told.
        work: number, seed and minutes to (lines to print first, tally).
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(f"--{noun}", dest="number", type=int, default=most)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf)
    given = parser.parse_args()
    start = time.monotonic()
    first, tally = work(given.number, given.seed, given.minutes)
    print(
        "\n".join(
            [
                *first,
                *tally.lines(),
                f"seconds                                {time.monotonic() - start:.0f}",
            ]
        )
    )
    return int(not tally.holds)
