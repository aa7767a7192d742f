"""The one folder a run writes: which file lies where, and how a file is written so that it is never half there."""

from __future__ import annotations

import json
import os
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dptrain.durable import make_folder, sync
from dptrain.errors import ConfigError

CACHE = Path("data", "cache")
"""Where feature maps of rows are kept, relative to the directory of launch; internal tier."""

GATE = "gate.json"
"""In ``internal/``: what the gate found in the rows."""


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What a run may be called."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run. Only ``checkpoint`` is made to leave the building."""

    path: Path
    run_id: str

    config = property(lambda self: self.path / "config.yaml")
    plan = property(lambda self: self.path / "plan.json")
    metrics = property(lambda self: self.path / "metrics.jsonl")
    statement = property(lambda self: self.path / "statement.json")
    checkpoint = property(lambda self: self.path / "checkpoint")
    internal = property(lambda self: self.path / "internal")
    internal_metrics = property(lambda self: self.path / "internal" / "metrics.jsonl")
    internal_audit = property(lambda self: self.path / "internal" / "audit.json")
    internal_statement = property(lambda self: self.path / "internal" / "statement.json")
    internal_manifest = property(lambda self: self.path / "internal" / "manifest.json")
    figures = property(lambda self: self.path / "figures")
    report = property(lambda self: self.path / "report.html")
    public_report = property(lambda self: self.path / "report.public.html")
    result = property(lambda self: self.path / "result.json")

    def check_free(self) -> None:
        """Refuses a folder that holds files, but for what a gate left of an attempt that it refused."""
        if self.path.exists() and not (self.path.is_dir() and self._is_empty()):
            raise ConfigError(
                "run.dir", self.path, "is not an empty folder", "name a new folder or leave run.dir unset"
            )

    def _is_empty(self) -> bool:
        refused = {self.internal, self.internal / GATE}
        return not any(self.path.iterdir()) or {*self.path.rglob("*")} == refused

    def create(self) -> RunFolder:
        """Makes the folder (0700) and its internal room; a folder that holds files is refused."""
        self.check_free()
        try:
            make_folder(self.path)
            make_folder(self.internal)
        except OSError as error:
            raise ConfigError(
                "run.dir", self.path, f"cannot be made ({error.strerror})", "name another folder"
            ) from error
        return self


def new_run(run_id: str | None, directory: str | None) -> RunFolder:
    """The folder a new run will have; nothing is made yet.

    Args:
        run_id: the run's name, or None for the time of launch and a random suffix.
        directory: the folder, or None for ``runs/<run_id>``.
    """
    if run_id is None:
        run_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    if not NAME.fullmatch(run_id):
        raise ConfigError("run.id", run_id, "is not a plain name", "use letters, digits, '.', '_' and '-'")
    path = Path(directory).expanduser() if directory else Path("runs", run_id)
    return RunFolder(path.absolute(), run_id)


def open_run(path: str) -> RunFolder:
    """The folder of a finished run; refused where it is none."""
    remedy = "give the folder that 'dptrain train' printed"
    folder = RunFolder(Path(path).expanduser().absolute(), "")
    if not folder.path.is_dir():
        raise ConfigError("run", path, "no such folder", remedy)
    if not folder.result.is_file():
        raise ConfigError("run", path, "is not a finished run (no result.json)", remedy)
    result = read_json(folder.result)
    run_id = result.get("run_id", folder.path.name) if isinstance(result, dict) else None
    if not (isinstance(run_id, str) and NAME.fullmatch(run_id)):
        raise ConfigError("run", folder.result, "is not the result of a run", "restore it from a copy")
    return RunFolder(folder.path, run_id)


def write_text(path: Path, text: str, mode: int = 0o600) -> None:
    """Writes a file whole or not at all, on disk when this returns: temporary file, rename, and their fsyncs."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any, mode: int = 0o600) -> None:
    """Writes indented JSON whole or not at all. NaN and infinities are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n", mode)


def read_json(path: Path) -> Any:
    """Reads JSON; a missing or torn file, or a pipe or device, which would never end, is a ConfigError naming it."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError("file", path, "is missing", "give a complete run folder") from error
    except (ValueError, OSError, RecursionError) as error:
        raise ConfigError("file", path, f"cannot be read as JSON ({error})", "restore it from a copy") from error
