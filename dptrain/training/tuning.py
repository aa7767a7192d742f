"""The trials of a search: checked before anything is spent, run one after another in the sealed room, compared."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model

from dptrain.config import TrainConfig
from dptrain.errors import BudgetRefused, ConfigError, suggest
from dptrain.file_lock import hold
from dptrain.gradients.bookkeeping.refusals import out_of_memory
from dptrain.privacy.ledger import Ledger
from dptrain.privacy.plan import Plan
from dptrain.privacy.tuning import told_composed
from dptrain.registry import load_user_files, sources
from dptrain.run_folder import RunFolder, new_run, read_json, write_json
from dptrain.sweep import Request, Sweep
from dptrain.tracking.console import summary
from dptrain.tracking.metrics_log import read_metrics
from dptrain.training import stages
from dptrain.training.budget import Budget
from dptrain.training.metrics import LOWER_IS_BETTER
from dptrain.training.private_metrics import NAME
from dptrain.training.setup import Setup, prepare

FREE = ("model", "optimizer", "task", "clipping", "execution", "finetune")
"""Groups of settings that a search may choose from: they cannot change what a trial costs."""
PRICED = ("privacy",)
"""Groups that a grid, whose runs are each charged for themselves, may choose from as well."""
SAME = (
    "data",
    "evaluation",
    "release",
    "tuning",
    "ledger",
    "gate",
    "tracking",
    "run",
    "seed",
    "imports",
    "allow_nonprivate_metrics",
)


FIXED = ("task.metrics", "finetune.start", "finetune.people")
"""Keys of free groups that trials share: what is compared, and what the winner goes on from."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search that nothing speaks against yet; no private row was read to make it."""

    sweep: Sweep
    setup: Setup
    """Of the first combination; its plan bears the price of the whole search under ``random``."""
    strategy: str
    score: str

    def config(self, combination: Sequence[int]) -> TrainConfig:
        """A trial's settings: no tracker, and the plan's numbers in place of what was solved for."""
        config: TrainConfig = self.sweep.config(combination)
        quiet = replace(config, tracking=replace(config.tracking, name="none", register_as=None))
        plan = self.setup.plan
        if self.strategy != "random" or plan.mechanism is None:
            return quiet
        solved = {"noise_multiplier": plan.mechanism.noise_multiplier, "steps": plan.steps}
        return replace(quiet, privacy=replace(config.privacy, **solved, epochs=None, epsilon=None))


def prepare_search(sweep: Sweep, strategy: str) -> tuple[Search, list[Plan]]:
    """Checks the axes and every combination that can be checked; returns the search, and a grid's plans in order.

    Raises:
        ConfigError: an axis would change what a trial costs or whose rows it reads, or a combination cannot be run.
        BudgetRefused: the folder holds a finished search: a further winner would be a further search.
    """
    if not sweep.axes:
        raise ConfigError("--multirun", "", "sweeps over nothing", "give a list of values: optimizer.lr=0.1,0.5")
    check_axes(sweep, strategy)
    base: TrainConfig = sweep.config((0,) * len(sweep.axes))
    if base.allow_nonprivate_metrics:
        shown = ",".join(base.allow_nonprivate_metrics)
        raise ConfigError("allow_nonprivate_metrics", shown, "would show trials of a search", "leave it out")
    if base.finetune.start is not None:
        problem = "is a bundle, and a search from one is not priced"
        raise ConfigError("finetune.start", base.finetune.start, problem, "set tuning.strategy=composed: job by job")
    for combination in sweep.to_check():
        _check_same(sweep.config(combination), base, sweep, strategy)
    setup = prepare(base, check_folder=False)
    if setup.plan.mechanism is None:
        raise ConfigError("privacy", "off", "has nothing to charge", "leave tuning.strategy out")
    names = ([NAME] if base.evaluation.metrics == "dp" else []) + setup.metrics
    name = base.tuning.score or names[0]
    if name not in names:
        raise ConfigError("tuning.score", name, "is not among the metrics of the run", suggest(name, names))
    if strategy == "random":
        setup = replace(setup, folder=_folder_of(base, setup.folder))
    search = Search(sweep=sweep, setup=setup, strategy=strategy, score=name)
    combinations = sweep.to_check() if strategy == "random" else all_of(sweep)
    return search, [prepare(search.config(c), check_folder=False).plan for c in combinations]


def _folder_of(config: TrainConfig, folder: RunFolder) -> RunFolder:
    """The folder of a random search, which goes on under the name that it was begun with.

    The name holds no time of launch: beside the statement's own date that would tell how long the search took, and so
    about how many trials there were.
    """
    if folder.result.is_file():
        raise BudgetRefused(
            "run.dir", folder.path, "holds a finished run", "name a new run.dir; a new search is charged"
        )
    if room_of(folder).is_file():
        return RunFolder(folder.path, str(read_json(room_of(folder)).get("run_id")))
    return new_run(config.run.id or f"search-{secrets.token_hex(6)}", config.run.dir)


def all_of(sweep: Sweep) -> list[tuple[int, ...]]:
    """Every combination, in the order of the command line."""
    if sweep.size > 1000:
        raise ConfigError("--multirun", sweep.size, "runs are more than a grid may have", "tuning.strategy=random")
    return [sweep.combination(number) for number in range(sweep.size)]


def check_axes(sweep: Sweep, strategy: str) -> None:
    """Refuses keys that a search of this kind cannot choose from, by name."""
    allowed = FREE if strategy == "random" else FREE + PRICED
    for axis in sweep.axes:
        root = axis.key.split("@")[0].split("/")[0].split(".")[0]
        if root == "privacy" and strategy == "random":
            raise ConfigError(
                axis.key,
                ",".join(value.split("=", 1)[1] for value in axis.values)[:80],
                "would change what a trial costs, and all trials of a random search share one price",
                "fix it, or set tuning.strategy=grid or composed, which price every run for itself",
            )
        if root == "seed":
            raise ConfigError(
                "seed", "", "also decides which rows are set aside, so trials would run on different rows", "fix it"
            )
        if root not in allowed or axis.key in FIXED:
            raise ConfigError(
                axis.key, "", "cannot be searched over", f"search over {', '.join(allowed)}, or fix it in every trial"
            )


def _check_same(config: TrainConfig, base: TrainConfig, sweep: Sweep, strategy: str) -> None:
    names = SAME + PRICED if strategy == "random" else SAME
    for name in names:
        if getattr(config, name) != getattr(base, name):
            keys = ",".join(axis.key for axis in sweep.axes)
            raise ConfigError(keys, "", f"changes '{name}' from trial to trial", "search over settings of the model")
    if config.task.metrics != base.task.metrics:
        raise ConfigError("task.metrics", "", "differs between trials, which could not be compared", "fix it")


def check_request(request: Request) -> bool:
    """Whether dptrain carries a sweep out itself (True), or Hydra job by job (False). Reads no private row.

    Raises:
        ConfigError: private rows without a strategy, or a launcher or sweeper that a charged sweep cannot use.
    """
    if request.strategy in ("random", "grid"):
        for kind, name in (("launcher", request.launcher), ("sweeper", request.sweeper)):
            if not name.startswith("hydra._internal.core_plugins.basic"):
                remedy = "leave it out: trials run one after another; tuning.strategy=composed runs job by job"
                raise ConfigError(f"hydra/{kind}", name.rsplit(".", 1)[-1], "is not Hydra's own", remedy)
        return True
    base: TrainConfig = request.sweep.config((0,) * len(request.sweep.axes))
    load_user_files(base.imports)
    info = sources.build(base.data.name, base.data, base.seed, options=base.data.options).info
    if base.privacy.mechanism == "none" or info.is_public or base.data.all_public:
        return False
    if request.public:
        raise ConfigError("tuning.public", True, f"data '{info.name}' is private", "set tuning.strategy")
    if request.strategy is None:
        raise ConfigError(
            "tuning.strategy",
            "null",
            f"data '{info.name}' is private, and a sweep over it is charged",
            "set random (secret best of a random number), grid (all charged at once) or composed (job by job)",
        )
    summary(told_composed(prepare(base, check_folder=False).plan, request.sweep.size), sys.stderr)
    return False


def shown(made: dict[str, Any]) -> str:
    """A score for people."""
    return "n/a" if made["score"] is None else f"{abs(made['score']):.4f}"


@contextmanager
def only_one(folder: RunFolder) -> Iterator[None]:
    """Holds a search's room: a second process that runs the same search is refused."""
    handle = os.open(folder.internal / "search.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not hold(handle):
            raise ConfigError("run.dir", folder.path, "is being searched by another process", "wait for it")
        yield
    finally:
        os.close(handle)


class Rows:
    """The rows of a search, mapped once for each way in which trials want them."""

    def __init__(self, first: Setup, ledger: Ledger | None) -> None:
        self._ledger = ledger
        self.first = stages.read_rows(first, ledger)
        self._held = {_way(first.config): self.first}

    @property
    def name(self) -> str | None:
        """Tells these rows from others, without saying which they are."""
        digest = self.first.digest
        return None if digest is None else hashlib.sha256(f"dptrain.search {digest}".encode()).hexdigest()

    def of(self, setup: Setup) -> stages.Loaded:
        """The rows as a trial's model takes them. Raises ConfigError where they changed since the search began."""
        way = _way(setup.config)
        if way not in self._held:
            loaded = stages.read_rows(setup, self._ledger)
            if loaded.digest != self.first.digest:
                raise ConfigError("data", setup.source.info.name, "changed during the search", "restore it")
            self._held = {way: loaded}
        return self._held[way]


def _way(config: TrainConfig) -> tuple[str, str]:
    return config.model.features, config.execution.dtype


def trial_folder(folder: RunFolder, number: int) -> RunFolder:
    """Where a trial lies: in the sealed room."""
    return RunFolder(folder.internal / "trials" / f"{number:05d}", folder.run_id)


def finished(folder: RunFolder, number: int) -> dict[str, Any] | None:
    """{"score", "seconds", "combination", "record"} of a trial that ended; None where it did not.

    ``record`` is of the model that the trial would release: of its last step, or of its best look.
    """
    path = trial_folder(folder, number).path / "score.json"
    return read_json(path) if path.is_file() else None


def run_trial(search: Search, rows: Rows, folder: RunFolder, number: int, combination: Sequence[int]) -> dict[str, Any]:
    """Makes one trial and keeps its weights, curve and score in the sealed room; nothing of it is shown.

    What an interrupted attempt left is removed unseen.

    Raises:
        KeyboardInterrupt: the trial was stopped; it does not count.
        ConfigError: it does not fit the device's memory.
    """
    room = trial_folder(folder, number)
    room.path.parent.mkdir(mode=0o700, exist_ok=True)
    shutil.rmtree(room.path, ignore_errors=True)
    room.create()
    with (room.path / "output.txt").open("w") as said, redirect_stdout(said), redirect_stderr(said):
        try:
            setup = replace(prepare(search.config(combination), check_folder=False), folder=room)
            trainer, recorder, _ = stages.assemble(setup, rows.of(setup), room, Budget())
            outcome = trainer.run(recorder.on_step)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            remedy = "lower it; the guarantee does not change"
            field = "execution.physical_batch_size"
            raise ConfigError(field, "", "does not fit the device's memory in a trial", remedy) from error
    if outcome.status != "finished":
        raise KeyboardInterrupt
    recorder.settle_on_best()
    value = recorder.last.get(search.score if search.score == NAME else f"test_{search.score}")
    score = None if value is None else -value if search.score in LOWER_IS_BETTER else value
    save_model(setup.module, str(room.path / "model.safetensors"))
    made = {"score": score, "seconds": outcome.seconds, "combination": list(combination), "record": recorder.last}
    write_json(room.path / "score.json", made)
    return made


def keep_best(folder: RunFolder, scores: Sequence[float], best: int) -> None:
    """Removes the weights of trials that did not win; they are never needed again."""
    for number in range(len(scores)):
        if number != best:
            (trial_folder(folder, number).path / "model.safetensors").unlink(missing_ok=True)


def curve(folder: RunFolder, number: int) -> list[dict[str, Any]]:
    """The records of a trial."""
    return read_metrics(trial_folder(folder, number).metrics)


def load_winner(setup: Setup, folder: RunFolder, number: int) -> None:
    """Fills the setup's model with a trial's weights."""
    load_model(setup.module, str(trial_folder(folder, number).path / "model.safetensors"))


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """What makes two searches the same: every setting but where results go and which account pays."""
    plain = dataclasses.asdict(config)
    return {name: value for name, value in plain.items() if name not in ("tracking", "run", "ledger", "execution")}


def room_of(folder: RunFolder) -> Path:
    """The file that holds a search's draws."""
    return folder.internal / "search.json"
