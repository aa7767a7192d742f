"""Copies runs to MLflow. The only file that imports it.

MLflow reports its use to its makers unless told otherwise, and ``import mlflow`` alone writes an installation
id to the home folder. Both are off here, before the import; whoever wants them sets
``MLFLOW_DISABLE_TELEMETRY=false`` in the environment. Pickle loading is off the same way.

Only explicit values reach the store: the plain client is used, not the fluent interface, which would add the
user's name, the script's path and the git commit as tags, and could log automatically.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import re
import secrets
import shlex
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from dptrain.errors import ConfigError
from dptrain.tracking.answers import error_code, reason, unknown_to
from dptrain.tracking.budget import statement_tags
from dptrain.tracking.outbox import Outbox, Points
from dptrain.tracking.state import STATE, State, write_state
from dptrain.tracking.store import REMEDY, creation_lock, resolve_store
from dptrain.tracking.verified import verified_statement

STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
LONGEST_PARAM, LONGEST_TAG, MOST_PARAMS = 6000, 8000, 100
FIRST_ANSWER = {True: 0.0, False: 120.0}
"""Seconds to wait for a new run's id: from a server, which may be slow or gone and is asked in the background, and
from an embedded store, which may have to be made."""
VIEW = "compareRunsMode=CHART&workflowType=machine_learning"
"""Opens MLflow's page on the runs of an experiment, charts in front."""


def internal_experiment(experiment: str) -> str:
    """The experiment that takes what must stay in the building."""
    return f"{experiment}-internal"


class MlflowTracker:
    """One run in an MLflow store; ``Tracker`` says what each method does.

    A thread delivers everything. A server that is gone costs the run nothing: what it missed is kept, tried
    again, and ``finish`` says whether all arrived.

    Args:
        uri: ``tracking.uri``; None for ``mlflow.db`` in the working directory, artifacts in ``mlruns`` beside it.
        experiment: name of the experiment; made when absent.
        patience: seconds without progress after which ``finish`` gives up.
        allow_http: whether a server on another host may be spoken to without TLS.
        earlier: how far an earlier process came with the same run; its id, where it is known, is gone on with, and
            what the store has already is not sent again.
        live: whether the run itself goes on (resumed), rather than being sent afterwards.

    Raises:
        ConfigError: the address is no MLflow store.
    """

    def __init__(
        self,
        uri: str | None,
        experiment: str,
        patience: float = 15.0,
        allow_http: bool = False,
        earlier: State | None = None,
        live: bool = False,
    ) -> None:
        self._store = resolve_store(uri, allow_http)
        self._experiment = experiment
        self._patience = patience
        self._mlflow: Any = None
        self._made: Any = None
        self._experiment_id: str | None = None
        self._run_id: str | None = None
        self._attached = False
        begun = int(time.time() * 1000)
        self._state = earlier or State(self._store.shown, experiment, secrets.token_hex(16), begun)
        self._state_file: Path | None = None
        self._incomplete = False
        self._replaying = earlier is not None and not live
        self._doubtful_run = self._doubtful_points = earlier is not None
        self._taken_up: str | None = None
        self._again = -1
        self._outbox: Outbox | None = None
        self.registered: str | None = None
        """The model version that ``register`` made, once it is known."""

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run, once it is known."""
        return self._run_id

    @property
    def uri(self) -> str:
        """The store without passwords."""
        return self._store.shown

    @property
    def trouble(self) -> str | None:
        """The last thing that went wrong, as one line; at the end of a run with the command that sends the rest."""
        error = self._outbox.trouble if self._outbox else None
        if not self._incomplete or self._state_file is None:
            return None if error is None else reason(error)
        folder = os.path.relpath(self._state_file.parent.parent)
        place = f" tracking.uri={shlex.quote(self.uri)}" if self._store.is_server else ""
        why = "it was too slow" if error is None else reason(error)
        return f"{why}; 'dptrain sync run={shlex.quote(folder)}{place}' sends the rest"

    def start(self, run_name: str, params: dict[str, str], tags: dict[str, str], note: str) -> str | None:
        """Opens a run; ``note`` becomes its description.

        Returns:
            the run's id; None while a server does not answer (it is asked again in the background).

        Raises:
            ConfigError: an embedded store cannot be used. A server's troubles never raise.
        """
        tags = {key: value[:LONGEST_TAG] for key, value in tags.items()}
        tags |= {"mlflow.note.content": note[:LONGEST_TAG], "mlflow.source.name": "dptrain"}
        tags["dp.session"] = self._state.session
        self._run_id = known = self._state.run_id

        def open_run() -> None:
            with creation_lock(self._store):  # the client makes the tables of an embedded store
                experiment_id = self._find_experiment()
            if known is not None and self._state.run_id == known:
                if self._is_open_again(known, tags):
                    return
                self._state.run_id, self._state.session = None, secrets.token_hex(16)
                tags["dp.session"], self._run_id, self._doubtful_run = self._state.session, None, False
            made = self._made_before(experiment_id) if self._doubtful_run else None
            if made is None:
                self._doubtful_run = True  # until the answer is here, the store may have made it or not
                run = self._client.create_run(experiment_id, self._state.started_ms, tags, run_name)
                made = run.info.run_id
            self._run_id = made
            self._keep_state()
            if known is not None:
                note = f"the tracking store has run {known} no more; it goes on there as {made}, from its first step"
                print(f"dptrain: note: {note}", file=sys.stderr)

        outbox = self._connect()
        outbox.job(open_run)
        outbox.tried.wait(FIRST_ANSWER[self._store.is_server])
        if self._run_id is None and not self._store.is_server:
            outbox.close(patience=0)
            problem = self.trouble or "did not answer"
            raise ConfigError("tracking.uri", self.uri, problem, f"{REMEDY}, or tracking=none")
        self.params(params)
        return self._run_id

    def params(self, params: dict[str, str]) -> None:
        """Hands over the run's settings; sending them again changes nothing."""

        def send() -> None:
            if self._run_id == self._taken_up:
                return  # it has them; a store takes no other value for one
            rows = [self._mlflow.entities.Param(key, str(value)[:LONGEST_PARAM]) for key, value in params.items()]
            for first in range(0, len(rows), MOST_PARAMS):
                self._client.log_batch(self._known_run(), params=rows[first : first + MOST_PARAMS])

        if params:
            self._do(send)

    def attach(self, run_id: str) -> None:
        """Goes on with a run that an earlier command opened; its status stays as it is."""
        self._connect()
        self._run_id, self._attached = run_id, True

    def log(self, step: int, metrics: dict[str, float], seconds: float) -> None:
        """Hands over one step's metrics; returns at once. They share a batch, a step and a time stamp."""
        named = {
            re.sub(r"[^/\w.\- :]", "_", name): float(value)
            for name, value in metrics.items()
            if value is not None and math.isfinite(value)
        }
        stamp = self._state.started_ms + round(seconds * 1000)
        if self._outbox is not None and named:
            self._outbox.points(Points(int(step), stamp, named))

    def log_again(self, step: int, metrics: dict[str, float], seconds: float) -> None:
        """As ``log``, for a step that an earlier process handed over: what the store has of it is not sent again."""
        self._again = max(self._again, int(step))
        self.log(step, metrics, seconds)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Hands over a file, or the files of a folder; it must stay as it is until ``finish``.

        The plan is the first file of a run and tells where its folder is, which keeps how far the store has it.
        """
        if path.name == "plan.json" and self._state_file is None and (path.parent / STATE).parent.is_dir():
            self._state_file = path.parent / STATE
            self._keep_state()
        self._do(lambda: self._send_files(path, folder))

    def tag(self, tags: dict[str, str]) -> None:
        """Adds tags to the run; an older value of the same name is replaced."""

        def send() -> None:
            rows = [self._mlflow.entities.RunTag(key, str(value)[:LONGEST_TAG]) for key, value in tags.items()]
            self._client.log_batch(self._known_run(), tags=rows)

        if tags:
            self._do(send)

    def register(self, name: str, bundle: Path) -> None:
        """Sends the release bundle and makes it a version of the registered model ``name``; nothing is pickled.

        Guarantee: no version is made of a bundle whose statement did not verify just before. The version carries the
        statement's digest, epsilon and delta as tags.

        Raises:
            ClaimRejected: the statement does not verify (exit code 4); nothing is sent.
        """
        tags = statement_tags(verified_statement(bundle))

        def register_version() -> None:
            self._send_files(bundle, "checkpoint")
            root = self._client.get_run(self._known_run()).info.artifact_uri
            try:
                self._client.create_registered_model(name)
            except Exception as error:
                if error_code(error) != "RESOURCE_ALREADY_EXISTS":
                    raise
            made = self._client.create_model_version(
                name, f"{root}/checkpoint", self._run_id, tags=tags, await_creation_for=None
            )
            self.registered = str(made.version)

        self._do(register_version)

    def finish(self, status: str | None) -> bool:
        """Delivers what waits, then closes the run as finished, stopped or failed (None leaves it open). True when
        everything arrived."""
        if self._outbox is None:
            return False
        if status is not None and (self._replaying or not self._attached):
            ended = STATUS[status]
            self._do(lambda: self._client.set_terminated(self._known_run(), ended))
        arrived = self._outbox.close(self._patience)
        self._state.complete, self._incomplete = arrived, not arrived
        self._keep_state()
        return arrived

    def open_command(self) -> str:
        """The shell command that shows the runs, on this machine only."""
        if self._store.uri.startswith("http"):
            return f"python -m webbrowser {shlex.quote(self.link())}"
        program = Path(sys.executable).with_name("mlflow")
        name = os.path.relpath(program) if program.is_relative_to(Path.cwd()) else str(program)
        quiet = "MLFLOW_DISABLE_TELEMETRY=true "  # the page reports its use as well
        return f"{quiet}{shlex.quote(name)} ui --backend-store-uri {shlex.quote(self.uri)} --host 127.0.0.1 --port 5000"

    def link(self) -> str:
        """The page to open, once the command runs: the experiment's runs with their charts."""
        host = self.uri.rstrip("/") if self._store.uri.startswith("http") else "http://127.0.0.1:5000"
        page = f"experiments/{self._experiment_id}/runs" if self._experiment_id else "experiments"
        return f"{host}/#/{page}?{VIEW}"

    def _connect(self) -> Outbox:
        if self._outbox is None:
            self._mlflow = _import_mlflow(with_database=not self._store.uri.startswith("http"))
            self._outbox = Outbox(self._send_points, self._is_lasting, bounded=not self._replaying)
        return self._outbox

    @property
    def _client(self) -> Any:
        """MLflow's client, made on first use: a database is opened by that, and it may not answer."""
        if self._made is None:
            self._made = self._mlflow.MlflowClient(tracking_uri=self._store.uri, registry_uri=self._store.uri)
        return self._made

    def _do(self, job: Any) -> None:
        if self._outbox is not None:
            self._outbox.job(job)

    def _find_experiment(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is None:
            place = self._store.artifacts
            folder = re.sub(r"[^\w.-]", "_", self._experiment)
            try:
                self._experiment_id = self._client.create_experiment(
                    self._experiment, artifact_location=(place / folder).as_uri() if place else None
                )
            except Exception as error:  # another job on the same server was first
                if error_code(error) != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self._client.get_experiment_by_name(self._experiment)
        if found is not None:
            if found.lifecycle_stage == "deleted":
                raise RuntimeError(f"experiment '{self._experiment}' was deleted; restore it or name another")
            self._experiment_id = found.experiment_id
        assert self._experiment_id is not None
        return self._experiment_id

    def _made_before(self, experiment_id: str) -> str | None:
        """The run that carries this session's tag: an earlier attempt made it, though the answer was lost."""
        wanted = f"tags.`dp.session` = '{self._state.session}'"
        found = self._client.search_runs([experiment_id], filter_string=wanted, max_results=1)
        return found[0].info.run_id if found else None

    def _is_open_again(self, run_id: str, tags: dict[str, str]) -> bool:
        """Marks a run of an earlier process as running, with these tags; False where the store has it no more."""
        try:
            if self._client.get_run(run_id).info.lifecycle_stage == "deleted":
                return False
        except Exception as error:
            if error_code(error) == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        self._client.update_run(run_id, status="RUNNING")
        rows = [self._mlflow.entities.RunTag(key, str(value)) for key, value in tags.items()]
        self._client.log_batch(run_id, tags=rows)
        self._taken_up = run_id
        return True

    def _keep_state(self) -> None:
        if self._state_file is not None:
            self._state.run_id = self._run_id
            with suppress(OSError):  # a full disk is the run's own trouble, and told there
                write_state(self._state_file, self._state)

    def _send_points(self, batch: list[Points]) -> None:
        rows = [
            self._mlflow.entities.Metric(name, value, points.timestamp, points.step)
            for points in batch
            for name, value in points.metrics.items()
        ]
        run_id, wanted = self._known_run(), len(rows)
        if self._doubtful_points or batch[0].step <= self._again:
            rows = unknown_to(self._client, run_id, rows)
        self._doubtful_points = True  # until the answer is here, the store may have them or not
        if rows:
            self._client.log_batch(run_id, metrics=rows)
        self._doubtful_points = self._replaying
        self._state.points += wanted
        self._keep_state()

    def _send_files(self, path: Path, folder: str | None) -> None:
        if path.is_dir():
            self._client.log_artifacts(self._known_run(), str(path), folder)
        else:
            self._client.log_artifact(self._known_run(), str(path), folder)

    def _known_run(self) -> str:
        if self._run_id is None:
            raise RuntimeError("the run was never opened")
        return self._run_id

    def _is_lasting(self, error: Exception) -> bool:
        """Refused as such, not merely undeliverable. Without a run all must wait."""
        refused = error_code(error) in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED")
        return self._run_id is not None and (refused or isinstance(error, FileNotFoundError))


def _import_mlflow(with_database: bool) -> Any:
    """Loads MLflow with telemetry and pickle loading off, and without its chatter. Import it nowhere else."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the outbox tries again, once it knows what arrived
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    for name, level in (
        ("alembic", logging.WARNING),  # one line a migration
        ("mlflow.store.db.utils", logging.WARNING),
        ("urllib3.connectionpool", logging.ERROR),  # one line a retry
    ):
        logging.getLogger(name).setLevel(level)
    with warnings.catch_warnings():
        # Deprecations inside MLflow's own dependencies, not ours to act on.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        import mlflow

        if with_database:  # here rather than in the thread, where warnings cannot be filtered safely
            for kind in ("tracking", "model_registry"):
                importlib.import_module(f"mlflow.store.{kind}.sqlalchemy_store")
    return mlflow
