"""The stages of a training run, in the order in which a recipe tells them. See ``recipes/train.py``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from dptrain.checkpoint.sealing_key import load_key
from dptrain.data.canaries import Canaries
from dptrain.data.gate import NamedRows, gate_rows
from dptrain.data.manifest import manifest_digest, new_salt
from dptrain.data.source import Rows, Splits
from dptrain.data.units import hold_out, load_capped
from dptrain.errors import ConfigError
from dptrain.gradients.bookkeeping.refusals import out_of_memory
from dptrain.keystream import Keystream
from dptrain.privacy.ledger import Ledger
from dptrain.run_folder import RunFolder, write_json, write_text
from dptrain.signing import load_signer
from dptrain.tracking.budget import ledger_tags
from dptrain.tracking.choose import make_tracker
from dptrain.tracking.console import Progress, summary
from dptrain.tracking.metrics_log import MetricsLog, read_metrics
from dptrain.tracking.params import flat_settings
from dptrain.tracking.state import STATE, State, read_state
from dptrain.tracking.tracker import Tracker
from dptrain.training.assemble import build_trainer
from dptrain.training.budget import Budget, reserve_again
from dptrain.training.budget import open_account as open_ledger_for
from dptrain.training.budget import reserve as reserve_plan
from dptrain.training.canaries import crafted_for, join, record_canaries, the_canaries, the_same_canaries
from dptrain.training.ending import conclude, say, write_result
from dptrain.training.evaluate import evaluate
from dptrain.training.loop import Outcome, StepReport, Trainer
from dptrain.training.mapped_rows import mapped_rows
from dptrain.training.metrics import LOWER_IS_BETTER
from dptrain.training.private_metrics import NAME, Best, PrivateAccuracy, planned_looks
from dptrain.training.probe_rows import with_features
from dptrain.training.recorder import Record, Recorder, evaluation_steps
from dptrain.training.release import release
from dptrain.training.resume import Begun, Keeper, begin, open_keeper
from dptrain.training.setup import Setup, prepare

__all__ = [
    "assemble",
    "begin",
    "conclude",
    "describe",
    "open_account",
    "open_folder",
    "prepare",
    "read_rows",
    "release",
    "reserve",
    "resumable",
    "say",
    "to",
    "train",
]


@dataclass(frozen=True)
class Loaded:
    """Rows ready for the model, and what identifies them; internal tier."""

    splits: Splits
    manifest: dict[str, Any]
    digest: str | None = None
    """Of the rows, under the ledger's key; None where no ledger is kept. Written to the ledger and to gate.json."""
    gate: dict[str, Any] | None = None  # what the gate found
    canaries: Canaries | None = None
    """Already among the rows of ``splits.train``, or left out of them."""


def open_account(setup: Setup, begun: Begun | None = None) -> Ledger | None:
    """The ledger this run is counted in, checked and in reach; None for runs that need none. Reads no private row.

    A run that goes on (``begun``) is refused here where code, plan or ledger are not those it was begun with. Says
    which part of a pretrained model is trained.
    """
    if setup.part is not None:
        summary([("part", str(setup.part))], sys.stderr)
    load_signer()  # a key that cannot be made or read stops a run here, not at its end
    settings = setup.config.checkpoint
    if settings.every or settings.seal_bundle or setup.config.audit.canaries:
        load_key(settings.key, create=True)
    if begun is not None:
        begun.check_plan(setup)
    ledger = open_ledger_for(setup.config, setup.purpose)
    if begun is not None:
        begun.check_ledger(None if ledger is None else ledger.id)
    return ledger


def read_rows(setup: Setup, ledger: Ledger | None = None, begun: Begun | None = None) -> Loaded:
    """Reads the private and the public rows, caps rows of a unit, applies the fixed feature map.

    The salted digest is of the rows as the source gave them, before any feature map.

    Raises:
        ConfigError: the rows do not fit what was declared about them, are quarantined, or not those the run began with.
    """
    config, info = setup.config, setup.source.info
    splits = load_capped(setup.source, config.privacy, config.seed)
    train = splits.train
    if len(splits.public) == 0:
        raise ConfigError("data.public_fraction", config.data.public_fraction, "leaves no public row", "raise it")
    if config.privacy.adjacency == "zero_out" and train.num_units != info.public_size:
        problem = f"the training rows hold {train.num_units} units, and their number is public under adjacency zero_out"
        remedy = f"set data.public_size={train.num_units}, or privacy.adjacency=add_remove"
        raise ConfigError("data.public_size", info.public_size, problem, remedy)
    salt = new_salt() if begun is None else begun.salt
    manifest = {"salt": salt.hex(), "digest": manifest_digest(train, salt), "rows": len(train)}
    if begun is not None:
        begun.check_rows(manifest)
    digest = None if ledger is None else manifest_digest(train, ledger.secret)
    gate = gate_rows(config.gate, config.data, info, splits, NamedRows(train, ledger, digest), setup.folder)
    train, held = hold_out(train, config.evaluation, config.seed)
    validation = None if held is None else mapped_rows(setup, held)
    canaries = the_canaries(config.audit) if begun is None else the_same_canaries(config, begun.folder)
    mapped = _with_canaries(setup, train, canaries)
    return Loaded(Splits(mapped, mapped_rows(setup, splits.public), validation), manifest, digest, gate, canaries)


def reserve(setup: Setup, loaded: Loaded, ledger: Ledger | None, begun: Begun | None = None) -> Budget:
    """Reserves the whole planned event from the account that knows these rows, before anything is made of them.

    A run that goes on takes its own entry up again, with what is left of it.

    Raises:
        BudgetRefused: the account cannot bear it; nothing was written.
    """
    if begun is not None:
        return reserve_again(ledger, setup.config, setup.plan, begun.entry, setup.folder.run_id)
    run_id, purpose, label = setup.folder.run_id, setup.purpose, setup.config.tuning.label or ""
    return reserve_plan(ledger, setup.config, setup.source.info, setup.plan, loaded.digest, run_id, purpose, label)


def _with_canaries(setup: Setup, train: Rows, canaries: Canaries | None) -> Rows:
    crafted = None
    if canaries is not None and canaries.kind == "crafted":
        crafted = mapped_rows(setup, crafted_for(canaries, setup.source.info, train), cache=None)
    return join(mapped_rows(setup, train), crafted, canaries)


def open_folder(setup: Setup, loaded: Loaded, begun: Begun | None = None) -> RunFolder:
    """Makes the run folder and writes the config; the salted digest of the rows goes to the internal room.

    A run that goes on has all that.
    """
    if begun is not None:
        return setup.folder
    folder = setup.folder.create()
    for warning in setup.plan.warnings:
        print(f"dptrain: note: {warning}", file=sys.stderr)
    describe(setup, loaded, folder)
    record_canaries(setup.config, loaded.canaries, folder)
    return folder


def describe(setup: Setup, loaded: Loaded, folder: RunFolder) -> None:
    """Writes the config, and the salted digest of the rows into the internal room."""
    write_text(folder.config, OmegaConf.to_yaml(OmegaConf.structured(setup.config)))
    write_json(folder.internal_manifest, loaded.manifest)
    write_json(folder.internal / "gate.json", loaded.gate)


def assemble(setup: Setup, loaded: Loaded, folder: RunFolder, budget: Budget) -> tuple[Trainer, Recorder, Tracker]:
    """The trainer, the recorder with its odometer, and the tracker; the plan goes to the folder and the tracker.

    For ``finetune.train=probe`` all rows first go through the frozen body, once.
    """
    config, plan, splits = setup.config, setup.plan, with_features(setup, loaded.splits)
    steps = evaluation_steps(plan.steps, config.evaluation.every)
    values = plan.odometer(steps)
    epsilons = dict(zip(steps, values, strict=True)) if values else {}
    odometer = {"steps": steps, "epsilon": values} if values else None
    write_json(folder.plan, plan.to_json(setup.num_parameters, odometer))
    rows, keystream = splits.train, setup.keystream
    trainer = build_trainer(config, plan, setup.module, rows, setup.row_loss, keystream, budget.intend)

    task, size, names = setup.source.info.task, config.evaluation.batch_size, setup.source.info.class_names
    private = _private_looks(setup, splits)
    shown = nullcontext if trainer.average is None else trainer.average.shown

    def look() -> dict[str, float]:
        with shown():
            values = evaluate(setup.module, splits.public, setup.row_loss, task, setup.metrics, size, names)
            return values if private is None else values | {NAME: private.look(setup.module)}

    recorder = Recorder(
        steps=steps,
        epsilons=epsilons,
        epsilon_limit=plan.epsilon,
        evaluate=look,
        listeners=[MetricsLog(folder.metrics).append],
        internal=MetricsLog(folder.internal_metrics),
        published=config.allow_nonprivate_metrics,
        standing=budget.standing,
        best=_best(setup, shown),
    )
    return trainer, recorder, _tracker(setup, folder, budget)


def _private_looks(setup: Setup, splits: Splits) -> PrivateAccuracy | None:
    info, evaluation, rows = setup.source.info, setup.config.evaluation, splits.validation
    if rows is None:
        return None
    looks = planned_looks(setup.config, info)
    return PrivateAccuracy(rows, info.task, evaluation.noise_multiplier, looks, evaluation.batch_size, Keystream())


def _best(setup: Setup, shown: Callable[[], AbstractContextManager[None]]) -> Best | None:
    if setup.config.release.choose != "best":
        return None
    if setup.config.evaluation.metrics == "dp":
        return Best(setup.module, NAME, lower=False, shown=shown)
    first = setup.metrics[0]
    return Best(setup.module, f"test_{first}", first in LOWER_IS_BETTER, shown)


def _earlier(folder: RunFolder) -> State | None:
    """How far a tracking store has a run that goes on; a damaged note costs the copy its one run, and no more."""
    try:
        return read_state(folder.path / STATE)
    except ConfigError as trouble:
        print(f"dptrain: note: {trouble}", file=sys.stderr)
        return None


def _tracker(setup: Setup, folder: RunFolder, budget: Budget) -> Tracker:
    config = setup.config
    tracker = make_tracker(config.tracking, earlier=_earlier(folder))
    tags = {"dp.private": str(setup.plan.is_private).lower(), "dp.unit": setup.plan.unit}
    if setup.plan.is_private:
        tags |= {"dp.adjacency": setup.plan.adjacency, "dp.noise": setup.plan.noise}
        tags["dp.accountant"] = "RDP" if setup.plan.mechanism and setup.plan.mechanism.trials else "PLD"
    if config.tracking.name != "none":
        tags |= {"dp.purpose": setup.purpose} | ledger_tags(budget.composition(setup.plan.epsilon))
    params = flat_settings(OmegaConf.to_container(OmegaConf.structured(config)))
    tracker.start(folder.run_id, params, tags, "training; the privacy statement follows when the run ends")
    tracker.artifact(folder.plan)
    for record in read_metrics(folder.metrics):  # of an earlier process: a server may have missed them
        if isinstance(record.get("step"), int) and isinstance(record.get("seconds"), int | float):
            tracker.log_again(record["step"], numbers_of(record), record["seconds"])
    return tracker


def resumable(
    setup: Setup,
    loaded: Loaded,
    trainer: Trainer,
    recorder: Recorder,
    ledger: Ledger | None,
    budget: Budget,
    begun: Begun | None,
) -> AbstractContextManager[Keeper | None]:
    """Keeps the run resumable from here on; of a run that goes on, puts weights, optimizer and records back first."""
    counted = None if ledger is None or budget.entry is None else {"id": ledger.id, "entry": budget.entry}
    keeper = open_keeper(setup, trainer, recorder, loaded.manifest, counted, budget, begun)
    return nullcontext() if keeper is None else keeper


def train(
    setup: Setup,
    trainer: Trainer,
    recorder: Recorder,
    tracker: Tracker,
    folder: RunFolder,
    keeper: Keeper | None = None,
) -> Outcome:
    """Takes the planned steps that were not executed yet. Ctrl-C ends the run cleanly, with a state to go on from; a
    defect leaves a result that says ``failed``."""
    check = trainer.selfcheck
    progress = Progress(setup.plan.steps, setup.plan.epsilon, watch=None if check is None else check.checker.line)
    recorder.listeners += [to(tracker), progress.evaluation]

    def on_step(done: int, report: StepReport, seconds: float) -> None:
        nonlocal last
        last = (done, report, seconds)
        recorder.on_step(done, report, seconds)
        progress.update(done)
        if keeper is not None:
            keeper.on_step(done, seconds)

    executed, before = (0, 0.0) if keeper is None else (keeper.executed, keeper.seconds)
    last: tuple[int, StepReport, float] = (executed, StepReport(), before)
    try:
        outcome = trainer.run(on_step, executed, before)
        if keeper is not None:
            keeper.keep(outcome.steps_done, outcome.seconds)  # written while the bundle is made
        if executed == setup.plan.steps:  # killed behind its last step: what is left is to look, and to release
            recorder.last = {**recorder.last, "step": executed, **recorder.evaluate()}
        if outcome.status == "stopped" and last[0] > executed:
            recorder.record(*last, epsilon=setup.plan.epsilon_after(outcome.steps_done))
        if trainer.average is not None:
            trainer.average.settle()  # behind the state to go on from, which keeps both
        recorder.settle_on_best()
    except BaseException as error:
        # The step in hand may have drawn its noise: it counts.
        done = min(last[0] + 1, setup.plan.steps)
        failed = Outcome(done, "failed", last[2])
        claimed = setup.plan.epsilon_after(done)
        if claimed is not None:
            with suppress(OSError):  # first on disk: 'dptrain sync' sends what the tracker did not get
                MetricsLog(folder.metrics).append({"step": done, "seconds": round(last[2], 3), "epsilon": claimed})
            tracker.log(done, {"epsilon": claimed}, last[2])
        with suppress(OSError):
            accused = None if check is None or check.accusation is None else check.accusation.culprit
            write_result(setup, failed, recorder, tracker, folder, accused)
        tracker.finish("failed")
        if out_of_memory(error):
            raise ConfigError(
                "execution.physical_batch_size",
                setup.config.execution.physical_batch_size,
                "does not fit the device's memory",
                "lower it; the guarantee does not change",
            ) from error
        raise
    finally:
        progress.close()
    return outcome


def to(tracker: Tracker) -> Callable[[Record], None]:
    """A listener that hands records to the tracker."""

    def hand_over(record: Record) -> None:
        tracker.log(int(record["step"]), numbers_of(record), float(record["seconds"]))

    return hand_over


def numbers_of(record: Record) -> dict[str, float]:
    """The metrics of a record, without what is missing."""
    return {k: float(v) for k, v in record.items() if k not in ("step", "seconds") and isinstance(v, int | float)}
