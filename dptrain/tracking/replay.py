"""Sends a tracking store what it missed of a run. The run folder is the truth; nothing arrives twice."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dptrain.config_tracking import is_this_machine
from dptrain.errors import ConfigError, one_line
from dptrain.file_lock import hold
from dptrain.run_folder import RunFolder, read_json, write_json
from dptrain.tracking.budget import statement_tags
from dptrain.tracking.metrics_log import read_metrics
from dptrain.tracking.mlflow import MlflowTracker, internal_experiment
from dptrain.tracking.params import flat_settings
from dptrain.tracking.state import STATE, State, read_state, write_state

UNSENT = "unsent-*.json"
"""Internal results that did not arrive, in the internal room: one file each."""


def replay(path: Path, uri: str | None = None, allow_http: bool = False) -> dict[str, Any]:
    """Sends what the store does not have yet: metrics, files, tags, status, and internal results of later commands.

    A point that the store has is not sent again, whoever sent it: the store is asked. May be interrupted and repeated.

    Args:
        path: a run folder; a run that was killed has no result, and its metrics alone are sent.
        uri: the store; None for the one that the folder names, where that is a file or on this machine. A server
            that only the folder names is not spoken to.
        allow_http: whether a server on another host may be spoken to without TLS.

    Returns:
        ``run_id`` (the store's), ``uri``, ``points`` (metric values that the store has of this run now).

    Raises:
        ConfigError: it is no run folder, no store is known, or the store did not take everything (then repeat).
    """
    folder = RunFolder(path.expanduser().absolute(), "")
    if not (folder.plan.is_file() and folder.internal.is_dir()):
        raise ConfigError("run", path, "is no run folder", "give the folder that 'dptrain train' printed")
    with _alone(folder.internal, path):
        return _replay(folder, uri, allow_http)


@contextmanager
def _alone(room: Path, path: Path) -> Iterator[None]:
    """One process at a time: two that both make a run there would make two."""
    handle = os.open(room, os.O_RDONLY)
    try:
        if not hold(handle):
            raise ConfigError("run", path, "is being synced by another process", "wait for it")
        yield
    finally:
        os.close(handle)


def _replay(folder: RunFolder, uri: str | None, allow_http: bool) -> dict[str, Any]:
    result = read_json(folder.result) if folder.result.is_file() else {}
    if not isinstance(result, dict):
        raise ConfigError("file", folder.result, "holds no result", "restore it from a copy")
    state = _going_on(folder, result, uri)
    target = uri if uri is not None else _trusted(state)
    tracker = MlflowTracker(target, state.experiment, allow_http=allow_http, earlier=state)
    if tracker.uri != state.uri:
        state = replace(state, uri=tracker.uri, run_id=None, complete=False)
        tracker = MlflowTracker(target, state.experiment, allow_http=allow_http, earlier=state)
    state.points = 0
    settings = _settings(folder)
    if state.run_id is not None:
        tracker.attach(state.run_id)
        tracker.params(settings)
    else:
        tracker.start(str(result.get("run_id") or folder.path.name), settings, {}, "")
    write_state(folder.path / STATE, state)
    tracker.artifact(folder.plan)
    for record in read_metrics(folder.metrics):
        numbers = {
            k: float(v) for k, v in record.items() if isinstance(v, int | float) and k not in ("step", "seconds")
        }
        tracker.log(int(record["step"]), numbers, float(record["seconds"]))
    if result:
        _send_outcome(tracker, folder)
    if not tracker.finish(str(result["status"]) if result else None):
        problem = f"did not take everything ({tracker.trouble or 'it was too slow'})"
        raise ConfigError("tracking.uri", tracker.uri, problem, "repeat this once it answers")
    for file in sorted(folder.internal.glob(UNSENT)):
        send_unsent(file, target, allow_http)
    if result and result.get("mlflow_run_id") is None:
        write_json(folder.result, result | {"mlflow_run_id": tracker.run_id, "tracking_uri": tracker.uri})
    return {"run_id": tracker.run_id, "uri": tracker.uri, "points": state.points}


def keep_unsent(folder: RunFolder, item: dict[str, Any]) -> Path:
    """Writes internal results down before they are sent; the file goes once they have arrived."""
    item = item | {"session": secrets.token_hex(16)}
    file = folder.internal / f"unsent-{item['session'][:12]}.json"
    write_json(file, item)
    return file


def send_unsent(file: Path, uri: str | None, allow_http: bool, patience: float = 15.0) -> bool:
    """Sends internal results as a run of the internal experiment; True, and the file is gone, when all arrived."""
    item = read_json(file)
    try:
        experiment = internal_experiment(str(item["experiment"]))
        state = State("", experiment, str(item["session"]), int(item["started_ms"]))
        tracker = MlflowTracker(uri, experiment, patience, allow_http, state)
        run_id = str(item["run_id"])
        tracker.start(run_id, {"run_id": run_id}, {"dp.tier": "internal"}, str(item["note"]))
        tracker.log(int(item["step"]), item["metrics"], 0.0)
        files = [Path(name) for name in item["files"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError("file", file, f"is damaged ({one_line(str(error))})", "remove it") from error
    for artifact in files:
        if artifact.is_absolute() or ".." in artifact.parts:
            raise ConfigError("file", file, f"names {artifact}, outside of the run folder", "remove it")
        tracker.artifact(file.parent.parent / artifact)
    arrived = tracker.finish("finished")
    if arrived:
        file.unlink()
    return arrived


def _going_on(folder: RunFolder, result: dict[str, Any], uri: str | None) -> State:
    """How far it came; for a run that kept no state, what its result says, and from the start."""
    state = read_state(folder.path / STATE)
    if state is not None:
        return state
    known = str(result.get("tracking_uri") or "")
    if not known and uri is None:
        raise ConfigError("tracking.uri", None, "this run was tracked nowhere", "name a store: tracking.uri=...")
    begun = int(folder.plan.stat().st_mtime * 1000)
    experiment = str(result.get("experiment") or "dptrain")
    return State(known, experiment, secrets.token_hex(16), begun, result.get("mlflow_run_id"))


def _trusted(state: State) -> str:
    if state.uri.startswith("sqlite:") or is_this_machine(state.uri):
        return state.uri
    problem = "only the run folder names this server"
    raise ConfigError("tracking.uri", None, problem, f"say tracking.uri={state.uri} if it is yours")


def _send_outcome(tracker: MlflowTracker, folder: RunFolder) -> None:
    for file in (folder.statement, folder.config):
        if file.is_file():
            tracker.artifact(file)
    if folder.checkpoint.is_dir():
        tracker.artifact(folder.checkpoint, "checkpoint")
    if folder.statement.is_file():
        statement = read_json(folder.statement)
        tracker.tag(statement_tags(statement) | {"mlflow.note.content": str(statement.get("sentence") or "")})


def _settings(folder: RunFolder) -> dict[str, str]:
    import yaml

    try:
        loaded = yaml.safe_load(folder.config.read_text(encoding="utf-8")) if folder.config.is_file() else {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError("file", folder.config, "cannot be read as YAML", "restore it from a copy") from error
    return flat_settings(json.loads(json.dumps(loaded, default=str)))
