"""Files that outlive a power cut: what stands in them and their names are on disk when a function here returns.

A file's content is on disk after ``fsync`` of the file, its name only after ``fsync`` of its folder: a new file, a
rename, a new folder are otherwise lost together with the power, whatever was synced inside.
Source: POSIX.1-2017, fsync; Pillai et al. 2014 ("All File Systems Are Not Created Equal"), on what else is assumed.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path


def sync(path: Path) -> None:
    """Puts a file's content, or a folder's names, on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Makes a folder (0700), and what is missing above it; one that is there stays as it is."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for made in reversed(missing):
        with suppress(PermissionError):  # a folder of others' may take new names and show none: nothing to sync by
            sync(made.parent)


def create_once(path: Path, data: bytes) -> bool:
    """Makes a file (0600) with this content, whole or not at all; of several processes at once, one alone succeeds.

    Returns:
        False where there is one already, which stays as it is.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            write_all(handle, data)
            os.fsync(handle)
        finally:
            os.close(handle)
        os.link(temporary, path)  # unlike a rename, never over what another process made meanwhile
        made = True
    except FileExistsError:
        made = False
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)
    return made


def append(handle: int, data: bytes, whole: int) -> None:
    """Appends to an open file behind its first ``whole`` bytes: all of it is there when this returns, or none.

    Args:
        handle: opened for writing with ``O_APPEND``.
        data: what is added.
        whole: bytes that count; what a writer that died left behind them is cut off first.

    Raises:
        OSError: the disk refuses it. The file holds its first ``whole`` bytes, as far as the disk lets it be cut.
    """
    os.ftruncate(handle, whole)
    try:
        write_all(handle, data)
        os.fsync(handle)
    except OSError:  # half a line must not stand before the next
        with suppress(OSError):
            os.ftruncate(handle, whole)
        raise


def write_all(handle: int, data: bytes) -> None:
    """Writes to the last byte: one ``write`` may take fewer than it is given."""
    left = memoryview(data)
    while left:
        left = left[os.write(handle, left) :]
