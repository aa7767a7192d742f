"""A finished run's bundle as a version of a registered model, after training."""

from __future__ import annotations

from pathlib import Path

from dptrain.errors import ConfigError
from dptrain.run_folder import read_json
from dptrain.tracking.budget import statement_tags
from dptrain.tracking.mlflow import MlflowTracker
from dptrain.tracking.verified import verified_statement


def register_model(
    path: Path, name: str, uri: str | None = None, experiment: str = "dptrain", allow_http: bool = False
) -> dict[str, str | None]:
    """Registers a release bundle as a new version of ``name``; refused unless its statement verifies.

    The version belongs to the MLflow run that training opened, where that lies in the same store; else to a new run.

    Args:
        path: a release bundle, or a run folder that holds one.
        name: of the registered model; made when absent.
        uri: an MLflow store; None for the one that the run was tracked in if that is a file, else ``mlflow.db`` here.
            A server that only the run folder names is not spoken to.
        experiment: of the new run, where one is needed.
        allow_http: whether a server on another host may be spoken to without TLS.

    Returns:
        ``name``, ``version``, ``run_id`` (MLflow's) and ``uri``.

    Raises:
        ClaimRejected: the statement does not verify (exit code 4); nothing is sent.
        ConfigError: there is no bundle, or the store did not take it.
    """
    bundle = path / "checkpoint" if (path / "checkpoint").is_dir() else path
    if not (bundle / "statement.json").is_file():
        raise ConfigError("path", path, "holds no release bundle", "give a run folder or its checkpoint/")
    if not name.strip():
        raise ConfigError("name", name, "is empty", "give name=MODEL")
    statement = verified_statement(bundle)
    known, run_id = _tracked(bundle)
    if uri is None and known is not None and known.startswith("sqlite:"):
        uri = known
    tracker = MlflowTracker(uri, experiment, allow_http=allow_http)
    if run_id is not None and known == tracker.uri:
        tracker.attach(run_id)
    else:
        tracker.start(f"register {name}", {}, {}, str(statement.get("sentence") or ""))
    tracker.tag(statement_tags(statement))
    tracker.register(name, bundle)
    if not tracker.finish("finished") or tracker.registered is None:
        raise ConfigError(
            "uri", tracker.uri, f"did not take the model ({tracker.trouble})", "try again once it answers"
        )
    return {"name": name, "version": tracker.registered, "run_id": tracker.run_id, "uri": tracker.uri}


def _tracked(bundle: Path) -> tuple[str | None, str | None]:
    """(store, MLflow run) of the run folder that the bundle lies in, where it lies in one."""
    file = bundle.parent / "result.json"
    result = read_json(file) if file.is_file() else None
    if not isinstance(result, dict) or not result.get("mlflow_run_id"):
        return None, None
    return str(result.get("tracking_uri")), str(result["mlflow_run_id"])
