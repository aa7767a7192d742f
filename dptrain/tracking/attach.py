"""Adds what later commands make to the MLflow run that training opened."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from dptrain.config_tracking import TrackingConfig
from dptrain.run_folder import RunFolder, read_json
from dptrain.tracking.choose import make_tracker
from dptrain.tracking.replay import keep_unsent, send_unsent


def attach_files(folder: RunFolder, files: list[Path], server: str | None) -> bool:
    """Hands public-tier files to the run's own tracker; True when there was nothing to hand over or all arrived."""
    result = read_json(folder.result)
    if not result.get("mlflow_run_id") or not _may_reach(result, server):
        return True
    tracker = make_tracker(_tracking(result))
    tracker.attach(result["mlflow_run_id"])
    for file in files:
        tracker.artifact(file)
    return tracker.finish(result["status"])


def log_internal(
    folder: RunFolder, metrics: dict[str, float], files: list[Path], note: str, server: str | None
) -> bool:
    """Puts internal-tier results into the internal experiment, as a run of the same name.

    They are written down first; what does not arrive stays in the internal room for ``dptrain sync``.
    """
    result = read_json(folder.result)
    if not result.get("mlflow_run_id") or not _may_reach(result, server):
        return True
    item = {
        "experiment": result.get("experiment", "dptrain"),
        "run_id": folder.run_id,
        "started_ms": int(time.time() * 1000),
        "note": note,
        "step": result["steps"] if isinstance(result.get("steps"), int) else 0,
        "metrics": metrics,
        "files": [os.path.relpath(file, folder.path) for file in files],
    }
    return send_unsent(keep_unsent(folder, item), server or result.get("tracking_uri"), allow_http=True)


def _may_reach(result: dict[str, Any], server: str | None) -> bool:
    """Whether the store is an embedded one that is there, or one that the user named: a folder's word is not enough."""
    uri = str(result.get("tracking_uri"))
    if uri == server:
        return True
    if uri.startswith("sqlite:"):  # the store that the run wrote to is there; no folder's word makes a file elsewhere
        place = Path(uri.partition(":///")[2].partition("?")[0])
        if place.is_file():
            return True
        print(f"dptrain: note: not copied to {uri}: there is no such file", file=sys.stderr)
        return False
    print(f"dptrain: note: not copied to {uri}; give tracking_uri={uri} to do so", file=sys.stderr)
    return False


def _tracking(result: dict[str, Any]) -> TrackingConfig:
    """Settings of the run's own store; one without TLS is named by the user, or it is not reached (``_may_reach``)."""
    uri, experiment = result.get("tracking_uri"), result.get("experiment", "dptrain")
    return TrackingConfig(uri=uri, experiment=experiment, allow_http=True)
