"""What a recipe may ask of a tracker, and the tracker that keeps nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Tracker(Protocol):
    """A copy of a run elsewhere. Only ``start`` and ``register`` may raise; ``log`` never waits: the run goes on."""

    def start(self, run_name: str, params: dict[str, str], tags: dict[str, str], note: str) -> str | None:
        """Opens a run; its id, or None when the tracker has none (yet)."""
        ...

    def attach(self, run_id: str) -> None:
        """Goes on with a run that an earlier command opened; ``finish`` then leaves its status as it is."""
        ...

    def log(self, step: int, metrics: dict[str, float], seconds: float) -> None:
        """Hands over the metrics of one step, ``seconds`` after the start."""
        ...

    def log_again(self, step: int, metrics: dict[str, float], seconds: float) -> None:
        """As ``log``, for a step that an earlier process of the run handed over: what arrived is not sent again."""
        ...

    def tag(self, tags: dict[str, str]) -> None:
        """Adds tags to the run, those of its ledger entry and its statement among them."""
        ...

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Hands over a file, or all files of a folder, to lie under ``folder`` there."""
        ...

    def register(self, name: str, bundle: Path) -> None:
        """Makes the release bundle a new version of the registered model ``name``.

        Raises:
            ClaimRejected: its statement does not verify; nothing is registered (exit code 4).
        """
        ...

    def finish(self, status: str) -> bool:
        """Ends the run as finished, stopped or failed; True when everything handed over arrived."""
        ...

    def open_command(self) -> str | None:
        """The shell command that shows the runs, or None when there is nothing to show."""
        ...

    def link(self) -> str | None:
        """The page to open once that command runs, charts in front; None when there is none."""
        ...

    @property
    def run_id(self) -> str | None:
        """The tracker's own id of the run, once it is known."""
        ...

    @property
    def uri(self) -> str | None:
        """Where the copy lies, without passwords."""
        ...

    @property
    def trouble(self) -> str | None:
        """The last thing that went wrong, as one line; None when nothing did."""
        ...


class NullTracker:
    """tracking=none: the run folder alone keeps the run."""

    run_id: str | None = None
    uri: str | None = None
    trouble: str | None = None

    def start(self, run_name: str, params: dict[str, str], tags: dict[str, str], note: str) -> str | None:
        """Opens nothing."""
        return None

    def attach(self, run_id: str) -> None:
        """Attaches to nothing."""

    def log(self, step: int, metrics: dict[str, float], seconds: float) -> None:
        """Keeps nothing."""

    def log_again(self, step: int, metrics: dict[str, float], seconds: float) -> None:
        """Keeps nothing."""

    def tag(self, tags: dict[str, str]) -> None:
        """Keeps nothing."""

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Keeps nothing."""

    def register(self, name: str, bundle: Path) -> None:
        """Registers nothing."""

    def finish(self, status: str) -> bool:
        """Nothing was handed over that could be missing."""
        return True

    def open_command(self) -> str | None:
        """There is nothing to show."""
        return None

    def link(self) -> str | None:
        """There is no page."""
        return None
