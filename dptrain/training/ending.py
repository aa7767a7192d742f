"""How a run ends: its result on disk, the public artifacts with the tracker, the six lines on the terminal."""

from __future__ import annotations

from typing import Any

from dptrain.run_folder import RunFolder, write_json
from dptrain.tracking.budget import statement_tags
from dptrain.tracking.console import summary
from dptrain.tracking.tracker import Tracker
from dptrain.training.loop import Outcome
from dptrain.training.recorder import Recorder
from dptrain.training.setup import Setup


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
    result = write_result(setup, outcome, recorder, tracker, folder)
    try:
        if setup.config.tracking.register_as:
            tracker.register(setup.config.tracking.register_as, folder.checkpoint)
    finally:
        arrived = tracker.finish(outcome.status)
        if result["mlflow_run_id"] != tracker.run_id:  # a slow server named the run only now
            result = write_result(setup, outcome, recorder, tracker, folder)
    if not arrived:
        print(f"dptrain: note: the tracker did not get everything ({tracker.trouble}); the run folder has it all")
    key = "test_accuracy" if "test_accuracy" in recorder.last else "public_loss"
    extra = {"objective": recorder.last.get(key), "sentence": statement["sentence"], "folder": str(folder.path)}
    return result | extra


def write_result(
    setup: Setup,
    outcome: Outcome,
    recorder: Recorder,
    tracker: Tracker,
    folder: RunFolder,
    accused: str | None = None,
) -> dict[str, Any]:
    """Writes result.json and returns it.

    Args:
        accused: what the self-check found wrong, where it stopped the run.
    """
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
    if accused is not None:
        result["selfcheck"] = accused
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
