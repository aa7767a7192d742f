"""How far a tracking store has a run: a small file in the run folder, read by ``dptrain sync``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dptrain.errors import ConfigError
from dptrain.run_folder import read_json, write_json

STATE = Path("internal", "tracking.json")
"""The file, relative to the run folder."""


@dataclass
class State:
    """How far it got.

    Attributes:
        uri: the store, without passwords.
        experiment: its experiment.
        session: a random name that the run carries as a tag, by which it is found again when an answer was lost.
        started_ms: when the run began, in milliseconds since 1970; time stamps count from here, so that a point that is
            sent again is the same point.
        run_id: the store's id of the run, once it is known.
        points: metric values that the store said it has.
        complete: whether everything arrived.
    """

    uri: str
    experiment: str
    session: str
    started_ms: int
    run_id: str | None = None
    points: int = 0
    complete: bool = False


def write_state(file: Path, state: State) -> None:
    """Writes the state whole or not at all."""
    write_json(file, asdict(state))


def read_state(file: Path) -> State | None:
    """The state, or None where none was kept.

    Raises:
        ConfigError: the file is torn, or holds something else.
    """
    if not file.is_file():
        return None
    found: Any = read_json(file)
    kinds = {"uri": str, "experiment": str, "session": str, "started_ms": int, "points": int, "complete": bool}
    whole = isinstance(found, dict) and found.keys() == {*kinds, "run_id"}
    if not whole or not all(isinstance(found[name], kind) for name, kind in kinds.items()):
        raise ConfigError("file", file, "is no tracking state", "remove it; the run is then sent as a new one")
    if not (found["run_id"] is None or isinstance(found["run_id"], str)) or not found["session"].isalnum():
        raise ConfigError("file", file, "is no tracking state", "remove it; the run is then sent as a new one")
    return State(**found)
