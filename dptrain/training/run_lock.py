"""One process a run: a lock in its folder that the operating system drops when its holder dies."""

from __future__ import annotations

import os
import time
import weakref
from pathlib import Path

from dptrain.errors import ConfigError
from dptrain.file_lock import hold


class RunLock:
    """Held while a process runs a run; the operating system lets go of it when the process dies, however it dies."""

    def __init__(self, room: Path) -> None:
        handle = os.open(room / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        if not hold(handle):
            who = os.read(handle, 100).decode("ascii", "replace").strip()
            os.close(handle)
            raise ConfigError("resume", room.parent, f"is run by another process ({who})", "wait for it")
        os.ftruncate(handle, 0)
        os.write(handle, f"pid {os.getpid()} since {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}\n".encode())
        self.release = weakref.finalize(self, os.close, handle)
