"""A disk that may lose its power: what a recorded process wrote, what of it was synced, and images of what may be left.

A file's content counts as safe once the file was synced, a name once its folder was (POSIX; no file system's favours
are assumed: that a rename, or a synced file, brings its name along). An image is made of what is safe, and, where a
coin is given, of some of what is not: pages of 4 KiB of each file, old or new or empty, either size, and of each
folder as many of its changes as the coin says, in their order.
"""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

PAGE = 4096


@dataclass
class Node:
    """A file or a folder: as the process sees it, and as it is on disk for certain."""

    folder: bool
    mode: int
    data: bytearray = field(default_factory=bytearray)
    safe: bytes = b""
    names: dict[str, Node] = field(default_factory=dict)
    safe_names: dict[str, Node] = field(default_factory=dict)
    pending: list[dict[str, Node | None]] = field(default_factory=list)
    """Changes of names since the last sync, each whole or not at all."""

    def change(self, names: dict[str, Node | None]) -> None:
        """Names that appear (a node) or go (None), together."""
        self.pending.append(names)
        apply(self.names, names)

    def sync(self) -> None:
        """What fsync promises."""
        if self.folder:
            self.safe_names, self.pending = dict(self.names), []
        else:
            self.safe = bytes(self.data)

    def left(self, coin: random.Random | None) -> bytes:
        """Content of a file after a power loss."""
        if coin is None or self.safe == self.data:
            return self.safe
        size = coin.choice([len(self.safe), len(self.data)])
        found = bytearray()
        for start in range(0, size, PAGE):
            source = coin.choice([self.safe, self.data])
            found += bytes(source[start : start + PAGE]).ljust(min(PAGE, size - start), b"\0")[: size - start]
        return bytes(found)

    def left_names(self, coin: random.Random | None) -> dict[str, Node]:
        """Names of a folder after a power loss."""
        found = dict(self.safe_names)
        for names in self.pending[: 0 if coin is None else coin.randint(0, len(self.pending))]:
            apply(found, names)
        return found


def apply(names: dict[str, Node], change: dict[str, Node | None]) -> None:
    """Carries out one change of names."""
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class Disk:
    """The tree below one folder, which is there, with all that is in it, when the recording begins.

    Args:
        root: the folder; paths given to the methods are absolute, those outside of it are not of this disk.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._top = _read(root)

    def has(self, path: str) -> bool:
        """Whether a path is of this disk. SQLite's ``-shm`` is not: it is shared memory, and made anew."""
        return (path == str(self._root) or path.startswith(f"{self._root}/")) and not path.endswith("-shm")

    def find(self, path: str) -> Node | None:
        """The node at a path, as the process sees it."""
        node: Node | None = self._top
        for name in Path(path).relative_to(self._root).parts:
            node = None if node is None else node.names.get(name)
        return node

    def make(self, path: str, folder: bool, mode: int) -> Node:
        """A new file or folder; one that is there stays."""
        node = self.find(path)
        if node is None:
            node = Node(folder, mode & ~0o022)
            self._above(path).change({Path(path).name: node})
        return node

    def link(self, old: str, new: str) -> None:
        """Another name of the same file."""
        self._above(new).change({Path(new).name: self._known(old)})

    def rename(self, old: str, new: str) -> None:
        """Another name in its place; within one folder, both sides at once."""
        node, source, target = self._known(old), self._above(old), self._above(new)
        if source is target:
            source.change({Path(old).name: None, Path(new).name: node})
        else:
            target.change({Path(new).name: node})
            source.change({Path(old).name: None})

    def remove(self, path: str) -> None:
        """A name that goes."""
        self._above(path).change({Path(path).name: None})

    def image(self, into: Path, coin: random.Random | None) -> None:
        """Writes what a power loss now may leave, in the place of what is there.

        Args:
            into: a folder; emptied first.
            coin: decides what of the un-synced survives; None: nothing of it.
        """
        for entry in into.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        _write(self._top, into, coin, {})

    def _above(self, path: str) -> Node:
        return self._known(str(Path(path).parent))

    def _known(self, path: str) -> Node:
        node = self.find(path)
        if node is None:
            raise RuntimeError(f"{path} was never seen to be made: the recording has a gap")
        return node


def _read(path: Path) -> Node:
    mode = path.stat().st_mode & 0o777
    if not path.is_dir():
        data = path.read_bytes()
        return Node(False, mode, bytearray(data), data)
    names = {entry.name: _read(entry) for entry in path.iterdir() if not entry.name.endswith("-shm")}
    return Node(True, mode, names=names, safe_names=dict(names))


def _write(node: Node, place: Path, coin: random.Random | None, seen: dict[int, Path]) -> None:
    for name, inner in node.left_names(coin).items():
        path = place / name
        if inner.folder:
            path.mkdir()
            path.chmod(inner.mode)
            _write(inner, path, coin, seen)
        elif id(inner) in seen:
            os.link(seen[id(inner)], path)
        else:
            path.write_bytes(inner.left(coin))
            path.chmod(inner.mode)
            seen[id(inner)] = path
