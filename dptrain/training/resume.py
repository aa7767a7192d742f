"""A run that goes on: what it keeps of itself while it trains, and how it is taken up again.

    dptrain train resume=runs/RUN

Guarantee: all attempts of a run together release at most the planned T steps of the planned mechanism, each on a fresh
draw with fresh noise under a fresh key of the operating system, and planned epsilon bounds everything that any of them
let out: every look, every bundle of an earlier stop, every resume state.

Why. A step is counted on disk before its noise is drawn (``privacy/ledger_again.py``, ``checkpoint/step_journal.py``),
and an attempt begins behind everything that is counted. Take the T-fold adaptive composition that the plan prices: at
step t someone who has seen the releases of all steps before chooses the weights at which the clipped sum is taken. That
composition bounds every choice, so also one that falls back to older weights (steps executed after the last state are
charged and forgotten), stops, waits, and goes on. A step that was counted and not executed releases nothing, which is
less. Where the run was killed may depend on what was released before: a choice like any other. It may not depend on the
rows in another way: that a machine runs out of memory on a large draw is a side channel, which the statement excludes,
as it excludes timing. The claim of an earlier stop (``privacy/stopping.py``) is true of the bundle that carries it
alone; together with what came later, planned epsilon holds. A run that stops again claims by all its counted steps.

Nothing here decides how much was spent. The state says where the weights stand; a state that is older than the newest
costs steps, never privacy. A ledger, a journal or rows that are behind the state, or other than it says, are refused.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from dptrain.checkpoint.home_journal import HomeJournal
from dptrain.checkpoint.resume_state import (
    ResumeState,
    StateWriter,
    clear_leftovers,
    decoded,
    encoded,
    on_cpu,
    public_random_state,
    read_newest,
    restore_random_state,
)
from dptrain.checkpoint.sealing_key import key_ring, load_key
from dptrain.checkpoint.step_journal import StepJournal
from dptrain.compose import readable, typed
from dptrain.config import TrainConfig
from dptrain.durable import make_folder
from dptrain.errors import ConfigError, one_line
from dptrain.run_folder import RunFolder, read_json
from dptrain.tracking.metrics_log import read_metrics
from dptrain.training.budget import Budget
from dptrain.training.drift import FREE, code_facts, plan_facts, refuse_drift, refuse_other_code
from dptrain.training.loop import Trainer
from dptrain.training.parts import note_part
from dptrain.training.recorder import Recorder
from dptrain.training.run_lock import RunLock
from dptrain.training.setup import Setup


@dataclass(frozen=True)
class Begun:
    """A run that was begun before, as its newest resume state has it. Its lock is held."""

    config: TrainConfig
    folder: RunFolder
    state: ResumeState
    lock: RunLock

    @property
    def facts(self) -> dict[str, Any]:
        """The state without its tensors."""
        return self.state.facts

    @property
    def salt(self) -> bytes:
        """Of the digest of the rows."""
        return bytes.fromhex(self.facts["data"]["salt"])

    @property
    def entry(self) -> int | None:
        """The run's entry in the ledger; None where none is kept."""
        return None if self.facts["ledger"] is None else int(self.facts["ledger"]["entry"])

    def check_plan(self, setup: Setup) -> None:
        """Refuses a plan, or code, that is not the one begun with; before a private row is read."""
        refuse_other_code(self.facts["code"], code_facts(self.config.imports))
        refuse_drift("plan", self.facts["plan"], plan_facts(setup.plan))
        refuse_drift("run.purpose", self.facts["purpose"], setup.purpose)

    def check_ledger(self, ledger_id: str | None) -> None:
        """Refuses another ledger than the one the run is counted in."""
        kept = self.facts["ledger"]
        refuse_drift("ledger", None if kept is None else kept["id"], ledger_id)

    def check_rows(self, manifest: dict[str, Any]) -> None:
        """Refuses rows that are not those begun with: one changed, added, dropped or moved."""
        refuse_drift("data", self.facts["data"]["digest"][:16], manifest["digest"][:16])

    def check_counted(self, executed: int) -> None:
        """Refuses a count that lies behind the weights, or behind the records of the run: a ledger or journal that was
        put back to an older copy. (A step that failed before it was counted may be the last record: one more.)"""
        if executed < self.facts["steps"]:
            raise ConfigError(
                "steps",
                executed,
                f"is what ledger or journal count, and the resume state has seen {self.facts['steps']}",
                "restore the newest ledger and journal; nothing may be released before",
            )
        seen = max((r["step"] for r in read_metrics(self.folder.metrics) if isinstance(r.get("step"), int)), default=0)
        if executed + 1 < seen:
            problem = f"is what ledger or journal count, and {self.folder.metrics.name} has seen {seen}"
            raise ConfigError("steps", executed, problem, "restore the newest ledger and journal")

    def restore(self, trainer: Trainer, recorder: Recorder, executed: int) -> None:
        """Weights, optimizer, public random state and records as they stood; the schedule at the steps executed."""
        tensors, facts = self.state.tensors, self.facts
        weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        trainer.module.load_state_dict(weights)
        trainer.optimizer.load_state_dict(decoded(facts["optimizer"], tensors))
        set_schedule(trainer, executed)
        restore_random_state(tensors, trainer.parameters[0].device)
        if trainer.selfcheck is not None:
            trainer.selfcheck.take_up(tensors)
        if trainer.average is not None:
            trainer.average.take_up(tensors)
        recorder.last = facts["recorder"]["last"]
        if recorder.best is not None and facts["recorder"]["best"] is not None:
            recorder.best.take_up(decoded(facts["recorder"]["best"], tensors))

    def set_bundle_aside(self) -> None:
        """The bundle of an earlier stop keeps its place in the folder, under another name: it may be out already."""
        if self.folder.checkpoint.exists():
            aside = self.folder.path / f"checkpoint-stopped-{_steps_stated(self.folder.checkpoint)}"
            while aside.exists():
                aside = aside.with_name(aside.name + "-again")
            os.rename(self.folder.checkpoint, aside)


def _steps_stated(bundle: Path) -> str:
    """What a bundle's statement says of steps, for a folder's name; the file may be anybody's by now."""
    try:
        steps = read_json(bundle / "statement.json")["sampling"]["steps_done"]
    except (ConfigError, KeyError, TypeError, IndexError):
        steps = None
    return str(steps) if type(steps) is int and 0 <= steps < 10**12 else "unknown"


def begin(run: str, given: Sequence[str] = ()) -> Begun:
    """Opens a run that was stopped or killed; reads no private row and writes nothing but the lock.

    Args:
        run: its folder.
        given: what else stands on the command line: performance settings, tracking and the key's source may change;
            anything else must be what the run was begun with.

    Raises:
        ConfigError: no such run, it has finished, another process runs it, its state does not open, or a setting
            drifted (both values are named).
    """
    path = Path(run).expanduser().absolute()
    room = path / "resume"
    if not path.is_dir():
        raise ConfigError("resume", run, "no such folder", "give the folder of a run: runs/RUN")
    found = read_json(path / "result.json") if (path / "result.json").is_file() else {}
    if not isinstance(found, dict):
        raise ConfigError("file", path / "result.json", "holds no result", "restore or remove it")
    if found.get("status") == "finished":
        raise ConfigError("resume", run, "has finished", "start a new run")
    if "selfcheck" in found:
        problem = f"was stopped by its self-check ({found['selfcheck']})"
        raise ConfigError("resume", run, problem, "find the fault, and start a new run; see docs/selfcheck.md")
    if not room.is_dir():
        remedy = "it was begun with checkpoint.every=0, or as a search, or with evaluation.metrics=dp; start a new run"
        raise ConfigError("resume", run, "keeps no resume state", remedy)
    changes = _parsed(given)
    lock = RunLock(room)
    try:
        clear_leftovers(room)
        state, troubles = read_newest(room, key_ring(OmegaConf.select(changes, "checkpoint.key")))
        for trouble in troubles:
            print(f"dptrain: note: {trouble}; going on from the state before", file=sys.stderr)
        config = _settings(state.facts, path, changes)
    except BaseException:
        lock.release()
        raise
    return Begun(config, RunFolder(path, state.facts["run_id"]), state, lock)


def _parsed(given: Sequence[str]) -> Any:
    for word in given:
        if word.startswith("-") or "=" not in word:
            raise ConfigError("command line", word, "does not go with resume=RUN", "leave it out")
    words = [f"tracking.name={w.partition('=')[2]}" if w.startswith("tracking=") else w for w in given]
    try:
        return OmegaConf.from_dotlist(words)
    except Exception as error:
        raise ConfigError("command line", " ".join(given), one_line(str(error)), "write KEY=VALUE") from error


def _settings(facts: dict[str, Any], path: Path, changes: Any) -> TrainConfig:
    """The sealed settings, with what may change; what may not is compared: the command line, and config.yaml."""
    base, stored = dict(_leaves(facts["config"])), path / "config.yaml"
    try:
        on_disk = OmegaConf.to_container(OmegaConf.load(stored)) if stored.is_file() else {}
        asked = OmegaConf.to_container(changes)
    except Exception as error:
        raise ConfigError("file", stored, f"cannot be read ({one_line(str(error))})", "restore or remove it") from error
    if not isinstance(on_disk, dict):
        raise ConfigError("file", stored, "holds no settings", "restore or remove it")
    named = on_disk.get("run")
    if isinstance(named, dict) and named.get("id") is not None:  # a state that was moved here from another run
        refuse_drift("run.id", facts["run_id"], named["id"])
    for key, value in _leaves(on_disk) + _leaves(asked):
        if not key.startswith(FREE):
            refuse_drift(key, base.get(key), value)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), facts["config"], changes)
    except Exception as error:
        raise readable(error) from error
    config: TrainConfig = typed(merged)
    if not config.checkpoint.every:
        raise ConfigError("checkpoint.every", 0, "would leave steps of a resumed run uncounted", "leave it above 0")
    config.run.id, config.run.dir, config.resume = facts["run_id"], str(path), None
    return config


def _leaves(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of everything in nested tables."""
    if isinstance(node, dict) and node:
        return [leaf for key, inner in node.items() for leaf in _leaves(inner, f"{prefix}{key}.")]
    return [(prefix.rstrip("."), node)] if prefix else []


def set_schedule(trainer: Trainer, executed: int) -> None:
    """The learning rate after ``executed`` steps: counted steps move the schedule, whether or not weights saw them."""
    schedule: Any = trainer.schedule
    schedule.last_epoch, schedule._step_count = executed, executed + 1
    rates = [base * factor(executed) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(trainer.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates


class Keeper:
    """Keeps a run resumable while it trains: its lock, its journal, its states. A context: leaving it lets go.

    Args:
        setup, trainer, recorder: of the run.
        manifest: {"salt", "digest", "rows"} of the rows.
        ledger: {"id", "entry"}, or None where none is kept.
        room: its folder ``resume``.
        lock: held.
        executed: steps that count as executed before this attempt.
        seconds: that were spent on them.
    """

    def __init__(
        self,
        setup: Setup,
        trainer: Trainer,
        recorder: Recorder,
        manifest: dict[str, Any],
        ledger: dict[str, Any] | None,
        room: Path,
        lock: RunLock,
        executed: int,
        seconds: float,
    ) -> None:
        self.executed, self.seconds = executed, seconds
        settings = setup.config.checkpoint
        self._setup, self._trainer, self._recorder = setup, trainer, recorder
        self._every, self._room, self._lock = settings.every, room, lock
        self._writer = StateWriter(room, load_key(settings.key), settings.keep)
        self._fixed = {
            "run_id": setup.folder.run_id,
            "purpose": setup.purpose,
            "config": OmegaConf.to_container(OmegaConf.structured(setup.config)),
            "code": code_facts(setup.config.imports),
            "plan": plan_facts(setup.plan),
            "data": manifest,
            "ledger": ledger,
            "torch": torch.__version__,
        }
        self._last = time.monotonic()
        self._told = False

    def on_step(self, done: int, seconds: float) -> None:
        """Called after every step; starts writing a state where one is due and none is under way."""
        if time.monotonic() - self._last >= self._every and not self._writer.is_busy:
            self.keep(done, seconds)

    def keep(self, done: int, seconds: float, wait: bool = False) -> None:
        """Copies the state of now and writes it in the background; with ``wait``, returns when it is on disk.

        A disk that refuses it is told once; the run goes on, and the state before stays.
        """
        self._tell(self._writer.wait())
        try:
            self._writer.submit(self._state(done, seconds))
        except ConfigError as trouble:  # an optimizer of the user's own that keeps what no file can
            self._tell(trouble)
        self._last = time.monotonic()
        if wait:
            self._tell(self._writer.wait())

    def forget(self) -> None:
        """Removes everything kept: a finished run has nothing left to resume."""
        self._tell(self._writer.close())
        shutil.rmtree(self._room, ignore_errors=True)

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *_: object) -> None:
        self._tell(self._writer.close())
        self._lock.release()

    def _tell(self, trouble: OSError | ConfigError | None) -> None:
        if trouble is not None and not self._told:
            self._told = True
            reason = (trouble.strerror if isinstance(trouble, OSError) else None) or str(trouble)
            print(f"dptrain: note: no resume state could be written ({reason}); the run goes on", file=sys.stderr)

    def _state(self, done: int, seconds: float) -> ResumeState:
        module, best = self._trainer.module, self._recorder.best
        tensors = {f"model.{name}": on_cpu(value) for name, value in module.state_dict().items()}
        tensors |= public_random_state(self._trainer.parameters[0].device)
        if self._trainer.selfcheck is not None:
            tensors |= self._trainer.selfcheck.kept()
        if self._trainer.average is not None:
            tensors |= self._trainer.average.kept()
        optimizer = encoded(self._trainer.optimizer.state_dict(), "optimizer", tensors)
        seen = None if best is None else encoded(best.kept(), "best", tensors)
        records = {"last": json.loads(json.dumps(self._recorder.last)), "best": seen}
        changing = {"steps": done, "seconds": seconds, "optimizer": optimizer, "recorder": records}
        return ResumeState({**self._fixed, **changing}, tensors)


def open_keeper(
    setup: Setup,
    trainer: Trainer,
    recorder: Recorder,
    manifest: dict[str, Any],
    ledger: dict[str, Any] | None,
    budget: Budget,
    begun: Begun | None,
) -> Keeper | None:
    """The keeper of a run, new or taken up again; None where the run keeps no state.

    From here on, every step is counted on disk before its noise, and there is a state to go on from. Runs whose event
    is more than their steps (noisy looks at private rows), or less than a release (trials of a search), keep none.
    """
    mechanism = setup.plan.mechanism
    if not setup.config.checkpoint.every or (mechanism is not None and (mechanism.beside or mechanism.trials)):
        return None
    room = setup.folder.path / "resume"
    make_folder(room)
    lock = RunLock(room) if begun is None else begun.lock
    if not budget.is_kept:
        budget.count_in(_journal(setup, manifest, room, begun is not None), setup.plan.steps)
    seconds = 0.0
    if begun is not None:
        begun.check_counted(budget.executed)
        begun.restore(trainer, recorder, budget.executed)
        seconds = float(begun.facts["seconds"])
    keeper = Keeper(setup, trainer, recorder, manifest, ledger, room, lock, budget.executed, seconds)
    keeper.keep(budget.executed, seconds, wait=True)
    note_part(setup, budget.executed)
    return keeper


def _journal(setup: Setup, manifest: dict[str, Any], room: Path, must_exist: bool) -> StepJournal:
    """Where a run without a ledger counts; private rows are counted in the user's room as well, for copies of it."""
    file = room / "journal"
    if setup.purpose == "debug" or not setup.plan.is_private:
        return StepJournal(file, must_exist)
    return HomeJournal(file, setup.folder.run_id, manifest["salt"], must_exist)
