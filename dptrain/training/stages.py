"""The stages of a training run, in the order in which a recipe tells them. See ``recipes/train.py``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import OmegaConf

from dptrain.checkpoint.sealing_key import load_key
from dptrain.data.gate import NamedRows, gate_rows
from dptrain.data.manifest import manifest_digest, new_salt
from dptrain.data.source import Rows, Splits
from dptrain.data.units import hold_out, load_capped
from dptrain.errors import ConfigError
from dptrain.keystream import Keystream
from dptrain.models.features import cached_features
from dptrain.privacy.ledger import Ledger
from dptrain.run_folder import CACHE, RunFolder, write_json, write_text
from dptrain.signing import load_signer
from dptrain.tracking.budget import ledger_tags, statement_tags
from dptrain.tracking.choose import make_tracker
from dptrain.tracking.console import Progress, summary
from dptrain.tracking.metrics_log import MetricsLog
from dptrain.tracking.tracker import Tracker
from dptrain.training.assemble import build_trainer
from dptrain.training.budget import Budget, reserve_again
from dptrain.training.budget import open_account as open_ledger_for
from dptrain.training.budget import reserve as reserve_plan
from dptrain.training.evaluate import evaluate
from dptrain.training.loop import Outcome, StepReport, Trainer
from dptrain.training.metrics import LOWER_IS_BETTER
from dptrain.training.private_metrics import NAME, Best, PrivateAccuracy, planned_looks
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


def open_account(setup: Setup, begun: Begun | None = None) -> Ledger | None:
    """The ledger this run is counted in, checked and in reach; None for runs that need none. Reads no private row.

    A run that goes on (``begun``) is refused here where code, plan or ledger are not those it was begun with.
    """
    load_signer()  # a key that cannot be made or read stops a run here, not at its end
    if setup.config.checkpoint.every:
        load_key(setup.config.checkpoint.key, create=True)
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
    validation = None if held is None else _mapped(setup, held)
    return Loaded(Splits(_mapped(setup, train), _mapped(setup, splits.public), validation), manifest, digest, gate)


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


def _mapped(setup: Setup, rows: Rows) -> Rows:
    inputs = rows.inputs
    if setup.spec.features != "none":
        inputs = cached_features(setup.spec.features, inputs, CACHE)
    dtype = torch.float64 if setup.config.execution.dtype == "float64" else torch.float32
    targets = rows.targets if rows.targets.dtype == torch.int64 else rows.targets.to(dtype)
    return Rows(inputs.to(dtype) if inputs.is_floating_point() else inputs, targets, rows.unit_id)


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
    return folder


def describe(setup: Setup, loaded: Loaded, folder: RunFolder) -> None:
    """Writes the config, and the salted digest of the rows into the internal room."""
    write_text(folder.config, OmegaConf.to_yaml(OmegaConf.structured(setup.config)))
    write_json(folder.internal_manifest, loaded.manifest)
    write_json(folder.internal / "gate.json", loaded.gate)


def assemble(setup: Setup, loaded: Loaded, folder: RunFolder, budget: Budget) -> tuple[Trainer, Recorder, Tracker]:
    """The trainer, the recorder with its odometer, and the tracker; the plan goes to the folder and the tracker."""
    config, plan = setup.config, setup.plan
    steps = evaluation_steps(plan.steps, config.evaluation.every)
    values = plan.odometer(steps)
    epsilons = dict(zip(steps, values, strict=True)) if values else {}
    odometer = {"steps": steps, "epsilon": values} if values else None
    write_json(folder.plan, plan.to_json(setup.num_parameters, odometer))
    rows, keystream = loaded.splits.train, setup.keystream
    trainer = build_trainer(config, plan, setup.module, rows, setup.row_loss, keystream, budget.intend)

    task, size = setup.source.info.task, config.evaluation.batch_size
    private = _private_looks(setup, loaded)

    def look() -> dict[str, float]:
        values = evaluate(setup.module, loaded.splits.public, setup.row_loss, task, setup.metrics, size)
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
        best=_best(setup),
    )
    return trainer, recorder, _tracker(setup, folder, budget)


def _private_looks(setup: Setup, loaded: Loaded) -> PrivateAccuracy | None:
    info, evaluation, rows = setup.source.info, setup.config.evaluation, loaded.splits.validation
    if rows is None:
        return None
    looks = planned_looks(setup.config, info)
    return PrivateAccuracy(rows, info.task, evaluation.noise_multiplier, looks, evaluation.batch_size, Keystream())


def _best(setup: Setup) -> Best | None:
    if setup.config.release.choose != "best":
        return None
    if setup.config.evaluation.metrics == "dp":
        return Best(setup.module, NAME, lower=False)
    first = setup.metrics[0]
    return Best(setup.module, f"test_{first}", first in LOWER_IS_BETTER)


def _tracker(setup: Setup, folder: RunFolder, budget: Budget) -> Tracker:
    config = setup.config
    tracker = make_tracker(config.tracking)
    tags = {"dp.private": str(setup.plan.is_private).lower(), "dp.unit": setup.plan.unit}
    if setup.plan.is_private:
        tags |= {"dp.adjacency": setup.plan.adjacency, "dp.noise": setup.plan.noise}
        tags["dp.accountant"] = "RDP" if setup.plan.mechanism and setup.plan.mechanism.trials else "PLD"
    if config.tracking.name != "none":
        tags |= {"dp.purpose": setup.purpose} | ledger_tags(budget.composition(setup.plan.epsilon))
    params = _flatten(OmegaConf.to_container(OmegaConf.structured(config)))
    tracker.start(folder.run_id, params, tags, "training; the privacy statement follows when the run ends")
    tracker.artifact(folder.plan)
    return tracker


def _flatten(node: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(node, dict):
        return {k: v for name, inner in node.items() for k, v in _flatten(inner, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): str(node)}


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
    progress = Progress(setup.plan.steps, setup.plan.epsilon)
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
        recorder.settle_on_best()
    except BaseException as error:
        # The step in hand may have drawn its noise: it counts.
        done = min(last[0] + 1, setup.plan.steps)
        failed = Outcome(done, "failed", last[2])
        claimed = setup.plan.epsilon_after(done)
        if claimed is not None:
            tracker.log(done, {"epsilon": claimed}, last[2])
        with suppress(OSError):
            _write_result(setup, failed, recorder, tracker, folder)
        tracker.finish("failed")
        if isinstance(error, torch.OutOfMemoryError):
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
        numbers = {k: float(v) for k, v in record.items() if k not in ("step", "seconds") and v is not None}
        tracker.log(int(record["step"]), numbers, float(record["seconds"]))

    return hand_over


def conclude(
    setup: Setup,
    outcome: Outcome,
    recorder: Recorder,
    tracker: Tracker,
    folder: RunFolder,
    statement: dict[str, Any],
) -> dict[str, Any]:
    """Writes result.json, hands the public artifacts to the tracker and closes it.

    Raises:
        ClaimRejected: ``tracking.register_as``, and the statement does not verify. The result is written by then, and
            the tracker closed.
    """
    tracker.artifact(folder.statement)
    tracker.artifact(folder.config)
    tracker.artifact(folder.checkpoint, "checkpoint")
    tracker.tag(statement_tags(statement) | {"mlflow.note.content": statement["sentence"]})
    result = _write_result(setup, outcome, recorder, tracker, folder)
    try:
        if setup.config.tracking.register_as:
            tracker.register(setup.config.tracking.register_as, folder.checkpoint)
    finally:
        arrived = tracker.finish(outcome.status)
        if result["mlflow_run_id"] != tracker.run_id:  # a slow server named the run only now
            result = _write_result(setup, outcome, recorder, tracker, folder)
    if not arrived:
        print(f"dptrain: note: the tracker did not get everything ({tracker.trouble}); the run folder has it all")
    key = "test_accuracy" if "test_accuracy" in recorder.last else "public_loss"
    extra = {"objective": recorder.last.get(key), "sentence": statement["sentence"], "folder": str(folder.path)}
    return result | extra


def _write_result(
    setup: Setup, outcome: Outcome, recorder: Recorder, tracker: Tracker, folder: RunFolder
) -> dict[str, Any]:
    private = setup.plan.is_private and setup.keystream.is_private
    skip = ("step", "seconds", "epsilon", "budget_spent", "budget_remaining")
    result = {
        "run_id": folder.run_id,
        "status": outcome.status,
        "private": private,
        "epsilon": setup.plan.epsilon_after(outcome.steps_done) if private else None,
        "delta": setup.plan.delta if private else None,
        "steps": outcome.steps_done,
        "planned_steps": setup.plan.steps,
        "metrics": {name: value for name, value in recorder.last.items() if name not in skip},
        "mlflow_run_id": tracker.run_id,
        "tracking_uri": tracker.uri,
        "open_command": tracker.open_command(),
        "seconds": round(outcome.seconds, 2),
        "device": str(next(setup.module.parameters()).device),
        "parameters": setup.num_parameters,
        "data": setup.source.info.name,
        "model": setup.spec.name,
        "experiment": setup.config.tracking.experiment,
    }
    write_json(folder.result, result)
    return result


def say(result: dict[str, Any], folder: RunFolder, statement: dict[str, Any]) -> None:
    """The six lines at the end of a training run; where it was counted, the third says where the account stands."""
    values = {name: f"{name} {value:.4f}" for name, value in result["metrics"].items()}
    public = [text for name, text in values.items() if name.startswith(("public_", "test_"))]
    private = [text for name, text in values.items() if not name.startswith(("public_", "test_"))]
    metrics = ", ".join(public) + (f"; from private rows: {', '.join(private)}" if private else "")
    guarantee, account = statement["guarantee"], statement["composition"]
    promise = "none claimed"
    if guarantee:
        unit = statement["unit"]["kind"]
        promise = f"epsilon {guarantee['epsilon']:.4f} at delta {guarantee['delta']:g} for one {unit}"
    if account:
        stands = f"{account['total']:.3f} of {account['limit_epsilon']:g} spent, {account['remaining']:.3f} left"
        promise += f"; account {account['account']}: {stands}"
    summary(
        [
            (
                "run",
                f"{result['run_id']} {result['status']}, {result['steps']} of {result['planned_steps']} steps, "
                f"{result['seconds']:.1f} s on {result['device']}",
            ),
            ("public split", metrics),
            ("privacy", promise),
            ("checkpoint", str(folder.checkpoint)),
            ("next", f"dptrain audit run={folder.path}"),
            ("watch", result["open_command"] or "tracking is off"),
        ]
    )
