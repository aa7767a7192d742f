"""A second journal of a run that no ledger counts, in the user's own room: a copied run folder does not forget.

A run folder can be copied, or put back from a backup, and its journal with it: the copy would begin behind an older
count, and two copies would each release the rest of the plan. The room remembers what any of them committed.

Guarantee: on one ``DPTRAIN_HOME``, all copies of a run together release at most its planned steps, and no two of them
run at a time. Where the room is another one (another machine), the folder's own journal is all there is.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from dptrain.checkpoint.step_journal import StepJournal
from dptrain.durable import make_folder
from dptrain.errors import ConfigError
from dptrain.file_lock import hold
from dptrain.signing import home


class HomeJournal(StepJournal):
    """The folder's journal, with a second one in ``DPTRAIN_HOME``; the larger count of both is the count.

    Args:
        path, must_exist: as for ``StepJournal``: the journal in the run folder.
        run_id: of the run.
        salt: the random salt of its rows' digest, which its copies share and no other run has.

    Raises:
        ConfigError: as ``StepJournal``; or a copy of this run is being run now.
    """

    def __init__(self, path: Path, run_id: str, salt: str, must_exist: bool = False) -> None:
        super().__init__(path, must_exist)
        folder = home() / "journals"
        make_folder(folder)
        name = hashlib.sha256(f"dptrain.journal/1 {run_id} {salt}".encode()).hexdigest()[:32]
        self._second: StepJournal | None = None
        self._lock = -1
        try:
            self._lock = _locked(folder / name, path.parent.parent)  # before it is read: a holder may be writing it
            self._second = StepJournal(folder / name)
            count = max(self.executed, self._second.executed)
            if count > self.executed:
                super().commit(count)
            if count > self._second.executed:
                self._second.commit(count)
        except BaseException:
            self.release()
            raise

    def commit(self, steps: int) -> None:
        """Declares, in both, that steps 1 to ``steps`` may be executed; on disk when it returns, else OSError."""
        super().commit(steps)
        if self._second is not None:
            self._second.commit(steps)

    def close(self, steps: int) -> None:
        """A clean stop, in both: only ``steps`` of those committed were executed."""
        super().close(steps)
        if self._second is not None:
            self._second.close(steps)

    def release(self) -> None:
        """Lets go of both files; further calls do nothing."""
        super().release()
        if self._second is not None:
            self._second.release()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _locked(path: Path, folder: Path) -> int:
    """The file, open and held; the operating system lets go of it when the process dies."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    if not hold(handle):
        os.close(handle)
        raise ConfigError("resume", folder, "is being run as another copy of its folder", "wait for it")
    return handle
