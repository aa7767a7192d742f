"""What a process does to a disk, call by call, as the operating system sees it: strace around a forked child.

SQLite's and safetensors' own calls are in it as well as Python's, in the one order in which they came to their end.
Linux and strace only. A call that is not understood here (a shared writable mapping of a file, say) is an error, never
left out.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from disk_model import Disk

CALLS = (
    "open,openat,creat,close,lseek,write,pwrite64,writev,pwritev,pwritev2,sendfile,copy_file_range,fallocate,"
    "fsync,fdatasync,sync_file_range,ftruncate,truncate,rename,renameat,renameat2,link,linkat,symlink,symlinkat,"
    "unlink,unlinkat,mkdir,mkdirat,rmdir,dup,dup2,dup3,fcntl,chmod,fchmod,fchmodat,mmap"
)
_LINE = re.compile(r"^(\d+) +(\w+)\((.*)\) += (-?\d+|0x[0-9a-f]+|\?)")
_BEGUN = re.compile(r"^(\d+) +(\w+)\((.*) <unfinished \.\.\.>$")
_ENDED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>(.*)\) += (-?\d+|0x[0-9a-f]+|\?)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


@dataclass(frozen=True)
class Call:
    """One call that succeeded: its name, its arguments as text, the strings among them, its result."""

    name: str
    rest: str
    texts: tuple[bytes, ...]
    result: int

    @property
    def words(self) -> list[str]:
        """Arguments, without what stands in quotes."""
        return [word.strip() for word in _TEXT.sub('""', self.rest).split(",")]


def record(work: Callable[[int], Any], witness: int, log: Path) -> list[Call]:
    """Runs ``work(witness)`` in a forked child under strace; its calls in order.

    Args:
        work: does not return what it made; ends the process with exit code 0 or raises.
        witness: an open file; what is written to it is in the calls.
        log: a file for strace, outside of the disk.

    Raises:
        RuntimeError: the child failed, or strace did.
    """
    ready, go = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(go)
        os.read(ready, 1)
        code = 1
        try:
            work(witness)
            code = 0
        finally:
            os._exit(code)
    os.close(ready)
    wanted = ["-f", "-qq", "-xx", "-s", "100000000", "-e", f"trace={CALLS}", "-e", "signal=none", "-o", str(log)]
    tracer = subprocess.Popen(["strace", *wanted, "-p", str(process)], stderr=subprocess.DEVNULL)
    _wait_until_traced(process, tracer)
    os.write(go, b"g")
    os.close(go)
    _, status = os.waitpid(process, 0)
    tracer.wait()
    if status:
        raise RuntimeError(f"the recorded process ended with status {status}")
    return list(_calls(log))


def _wait_until_traced(process: int, tracer: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while "TracerPid:\t0\n" in Path(f"/proc/{process}/status").read_text():
        if tracer.poll() is not None or time.monotonic() > deadline:
            os.kill(process, 9)
            os.waitpid(process, 0)
            raise RuntimeError("strace may not trace here")
        time.sleep(0.005)


def _calls(log: Path) -> Iterator[Call]:
    begun: dict[str, str] = {}
    for line in log.read_text().splitlines():
        started, ended, whole = _BEGUN.match(line), _ENDED.match(line), _LINE.match(line)
        if started:
            begun[started[1]] = started[3]
        elif ended or whole:
            found = ended or whole
            assert found is not None
            rest, result = (begun.pop(found[1]) if ended else "") + found[3], found[4]
            if not result.startswith("-") and result != "?":
                texts = _TEXT.findall(rest)
                if any(cut for _, cut in texts):
                    raise RuntimeError(f"strace cut a string short: {line[:100]}")
                raw = tuple(bytes.fromhex(text.replace("\\x", "")) for text, _ in texts)
                yield Call(found[2], rest, raw, int(result, 0))


@dataclass
class Open:
    """An open file: its path when it was opened, and where the next ``write`` goes."""

    path: str
    place: int = 0
    appends: bool = False
    node: Any = None


@dataclass
class Replay:
    """Applies calls to a disk, one after another."""

    disk: Disk
    cwd: str
    witness: int
    files: dict[int, Open] = field(default_factory=dict)

    def take(self, call: Call) -> bytes | None:
        """Applies a call; what was written to the witness, if that is what it was. None otherwise."""
        words, name = call.words, call.name
        if name in ("write", "pwrite64") and words[0] == str(self.witness):
            return call.texts[0]
        if name in ("open", "openat", "creat"):
            self._open(call)
        elif name in ("dup", "dup2", "dup3") or (name == "fcntl" and words[1].startswith("F_DUPFD")):
            if int(words[0]) in self.files:
                self.files[call.result] = self.files[int(words[0])]
        elif name == "close":
            self.files.pop(int(words[0]), None)
        elif name == "mmap":
            held = self.files.get(int(words[4])) if words[4].lstrip("-").isdigit() else None
            if held is not None and held.node is not None and "PROT_WRITE" in words[2] and "MAP_SHARED" in words[3]:
                raise RuntimeError(f"{held.path} is mapped and written to: not understood")
        elif name in ("rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat"):
            self._two_names(call)
        elif name in ("unlink", "unlinkat", "rmdir", "mkdir", "mkdirat", "truncate", "chmod", "fchmodat"):
            self._one_name(call)
        elif name != "fcntl":
            self._on_file(call)
        return None

    def _path(self, base: str, text: bytes) -> str:
        above = self.cwd if base == "AT_FDCWD" else self.files[int(base)].path
        return os.path.normpath(os.path.join(above, text.decode()))

    def _open(self, call: Call) -> None:
        words = call.words
        based = call.name == "openat"
        path = self._path(words[0] if based else "AT_FDCWD", call.texts[0])
        flags = "O_CREAT|O_TRUNC" if call.name == "creat" else words[2 if based else 1]
        held = Open(path, appends="O_APPEND" in flags)
        if self.disk.has(path):
            held.node = self.disk.find(path)
            if held.node is None and "O_CREAT" in flags:
                held.node = self.disk.make(path, False, int(words[3 if based else 2], 8))
            if held.node is not None and "O_TRUNC" in flags:
                held.node.data = bytearray()
        self.files[call.result] = held

    def _two_names(self, call: Call) -> None:
        words = call.words
        places = ("AT_FDCWD", "AT_FDCWD") if not call.name.endswith(("at", "at2")) else (words[0], words[2])
        old, new = (self._path(base, text) for base, text in zip(places, call.texts, strict=True))
        if self.disk.has(old) != self.disk.has(new) or (self.disk.has(new) and "symlink" in call.name):
            raise RuntimeError(f"{call.name} of {old} to {new}: not understood")
        if self.disk.has(new):
            (self.disk.link if call.name.startswith("link") else self.disk.rename)(old, new)

    def _one_name(self, call: Call) -> None:
        words, based = call.words, call.name.endswith("at")
        path = self._path(words[0] if based else "AT_FDCWD", call.texts[0])
        if not self.disk.has(path):
            return
        if call.name.startswith("mkdir"):
            self.disk.make(path, True, int(words[2 if based else 1], 8))
        elif "chmod" in call.name:
            node = self.disk.find(path)
            assert node is not None
            node.mode = int(words[2 if based else 1], 8)
        elif call.name == "truncate":
            raise RuntimeError(f"truncate of {path}: not understood")
        else:
            self.disk.remove(path)

    def _on_file(self, call: Call) -> None:
        words, name = call.words, call.name
        held = self.files.get(int(words[0])) if words[0].lstrip("-").isdigit() else None
        if held is None or held.node is None:
            return
        if name in ("fsync", "fdatasync"):
            held.node.sync()
        elif name == "ftruncate":
            size, data = int(words[1]), held.node.data
            held.node.data = data[:size] + bytes(max(0, size - len(data)))
        elif name == "lseek":
            held.place = call.result
        elif name == "write":
            start = len(held.node.data) if held.appends else held.place
            _put(held.node.data, start, call.texts[0][: call.result])
            held.place = start + call.result
        elif name == "pwrite64":
            _put(held.node.data, int(words[3]), call.texts[0][: call.result])
        elif name == "fchmod":
            held.node.mode = int(words[1], 8)
        else:
            raise RuntimeError(f"{name} on {held.path}: not understood")


def _put(data: bytearray, start: int, piece: bytes) -> None:
    if len(data) < start:
        data.extend(bytes(start - len(data)))
    data[start : start + len(piece)] = piece
