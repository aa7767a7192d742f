"""How many steps a run may have executed, for runs that no ledger counts: one line a lease, synced before the noise.

Guarantee: ``executed`` is never below the number of steps whose noise was drawn by any process of this run. A line
whose end is missing was never acknowledged, so no step of it was taken; anything else that cannot be read is refused.
"""

from __future__ import annotations

import os
from pathlib import Path

from dptrain.durable import append, sync
from dptrain.errors import ConfigError


class StepJournal:
    """Lines ``steps N`` (1 to N may be executed) and ``closed N`` (a clean stop after N). The last one counts.

    Args:
        path: the file; made (0600) when absent.
        must_exist: refuses to start one anew (a resumed run).

    Raises:
        ConfigError: a line is not what this class writes, or the file is missing where it must not be.
    """

    def __init__(self, path: Path, must_exist: bool = False) -> None:
        if must_exist and not path.is_file():
            raise ConfigError(
                "step journal", path, "is missing, so nobody knows how many steps were executed", "start a new run"
            )
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self.executed = 0
        """Steps that count as executed."""
        whole = 0
        with open(path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                self._read(path, line)
        self._size = whole
        os.ftruncate(self._handle, whole)
        os.fsync(self._handle)
        sync(path.parent)

    def commit(self, steps: int) -> None:
        """Declares that steps 1 to ``steps`` may be executed; on disk when it returns, else OSError."""
        if steps < self.executed:
            raise ValueError(f"steps={steps} is below the {self.executed} committed")
        self._append(f"steps {steps}\n")
        self.executed = steps

    def close(self, steps: int) -> None:
        """A clean stop: only ``steps`` of those committed were executed."""
        if not 0 <= steps <= self.executed:
            raise ValueError(f"steps={steps} is not between 0 and the {self.executed} committed")
        self._append(f"closed {steps}\n")
        self.executed = steps

    def release(self) -> None:
        """Lets go of the file; further calls do nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _append(self, line: str) -> None:
        append(self._handle, line.encode(), self._size)
        self._size += len(line)

    def _read(self, path: Path, line: bytes) -> None:
        kind, _, number = line.decode("ascii", "replace").rstrip("\n").partition(" ")
        steps = int(number) if number.isdecimal() and number.isascii() and len(number) < 16 else -1
        fits = steps >= self.executed if kind == "steps" else kind == "closed" and 0 <= steps <= self.executed
        if not fits:
            raise ConfigError("step journal", path, "holds a line that nobody wrote", "start a new run")
        self.executed = steps
