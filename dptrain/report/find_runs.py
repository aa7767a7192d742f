"""From what a person typed to run folders: names, globs, and folders of runs."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dptrain.errors import ConfigError
from dptrain.run_folder import RunFolder, open_run, read_json

WILD = ("*", "?", "[")
NOT_DONE = "no result.json: it is still running or was killed"


@dataclass(frozen=True)
class Found:
    """Runs to be shown, and folders a wide net caught that are none."""

    runs: list[RunFolder]
    left_out: list[tuple[str, str]]
    """(folder, why)."""


def find_runs(wanted: Sequence[str]) -> Found:
    """The finished runs that ``wanted`` names, in that order.

    A name with ``*``, ``?`` or ``[`` is a glob, and a folder without result.json is searched one level down: what
    these catch that is no finished run is left out and named. A run named outright must be one.

    Raises:
        ConfigError: a run is missing, unfinished, failed or named twice; a glob or a folder holds no run.
    """
    runs: list[RunFolder] = []
    left_out: list[tuple[str, str]] = []
    for text in wanted:
        path = Path(text).expanduser()
        if any(sign in text for sign in WILD) and not path.exists():
            caught = sorted(Path(name) for name in glob.glob(os.path.expanduser(text)) if os.path.isdir(name))
            runs += _only_finished(text, caught, left_out, "matches no run folder", "quote it, or name the runs")
        elif path.is_dir() and not (path / "result.json").is_file() and not _was_a_run(path):
            caught = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
            runs += _only_finished(text, caught, left_out, "holds no finished run", "give the folder of your runs")
        else:
            runs.append(_outright(text))
    _refuse_twins(runs)
    return Found(runs, left_out)


def _outright(text: str) -> RunFolder:
    path = Path(text).expanduser()
    if path.is_dir() and _was_a_run(path) and not (path / "result.json").is_file():
        raise ConfigError("runs", text, f"is not finished ({NOT_DONE})", "leave it out, or wait for it")
    why = _unusable(path) if (path / "result.json").is_file() else None
    if why:
        raise ConfigError("runs", text, why, "leave it out")
    try:
        return open_run(text)
    except ConfigError as error:
        raise ConfigError("runs", text, error.problem, error.remedy) from error


def _only_finished(
    text: str, caught: list[Path], left_out: list[tuple[str, str]], problem: str, remedy: str
) -> list[RunFolder]:
    runs = []
    for path in caught:
        if not (path / "result.json").is_file():
            if _was_a_run(path):
                left_out.append((str(path), NOT_DONE))
            continue
        why = _unusable(path)
        if why:
            left_out.append((str(path), why))
        else:
            runs.append(open_run(str(path)))
    if not runs:
        raise ConfigError("runs", text, problem, remedy)
    return runs


def _was_a_run(path: Path) -> bool:
    return (path / "config.yaml").is_file() or (path / "plan.json").is_file()


def _unusable(path: Path) -> str | None:
    try:
        result = read_json(path / "result.json")
    except ConfigError:
        return "its result.json cannot be read"
    if not isinstance(result, dict):
        return "its result.json is damaged"
    if result.get("status") == "failed":
        return "ended with an error and released nothing"
    return None


def _refuse_twins(runs: list[RunFolder]) -> None:
    seen: dict[Any, RunFolder] = {}
    for folder in runs:
        keys = (folder.path.resolve(), folder.result.read_bytes())
        for key in keys:
            if key in seen:
                problem = "is named twice" if key == keys[0] else f"is a copy of {seen[key].path}"
                raise ConfigError("runs", folder.path, problem, "name each run once")
            seen[key] = folder
