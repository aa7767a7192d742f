"""One process at a time: a lock on an open file, which the operating system drops when its holder dies."""

from __future__ import annotations

import fcntl


def hold(handle: int) -> bool:
    """Locks an open file, unless another open file holds the lock; closing the handle lets go of it.

    Returns:
        whether it is held now; it does not wait.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
