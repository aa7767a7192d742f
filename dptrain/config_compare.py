"""Settings of ``dptrain compare`` and ``dptrain register``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dptrain.config_tracking import refuse_credentials, refuse_plain_http
from dptrain.errors import ConfigError
from dptrain.ranges import choice


@dataclass
class CompareConfig:
    """Root of ``dptrain compare``."""

    runs: Any = "???"
    """Folders of finished runs: one, a list, a glob (``runs/*``), or a folder that holds runs."""
    into: str | None = "comparison"
    """Folder for the page and its figures, made when absent; null: only print."""
    tier: str = "internal"
    """internal (with times and attacks, stays in the building) or public (what may be shown)."""
    format: str = "text"
    """text or json, on standard output."""

    def __post_init__(self) -> None:
        choice("tier", self.tier, ["internal", "public"])
        choice("format", self.format, ["text", "json"])
        if self.runs == "???":
            return
        given = [self.runs] if isinstance(self.runs, str) else self.runs
        if not isinstance(given, list) or not given or not all(isinstance(name, str) and name for name in given):
            raise ConfigError(
                "runs", self.runs, "is not a list of run folders", "give runs=[runs/A,runs/B] or runs=runs"
            )
        self.runs = given


@dataclass
class RegisterConfig:
    """Root of ``dptrain register``."""

    path: str = "???"
    """A run folder, or its checkpoint/."""
    name: str = "???"
    """Name of the registered model; made when absent."""
    uri: str | None = None
    """MLflow store; null: the file that the run was tracked in, else ``sqlite:///mlflow.db``. Servers must be named."""
    allow_http: bool = False
    """Accept a server on another host without TLS: whoever listens in reads the model and tokens."""
    experiment: str = "dptrain"
    """Experiment of the run that carries a bundle which was never tracked."""
    format: str = "text"
    """text or json, on standard output."""

    def __post_init__(self) -> None:
        choice("format", self.format, ["text", "json"])
        if self.uri is not None:
            refuse_credentials("uri", self.uri)
            refuse_plain_http("uri", self.uri, self.allow_http)
