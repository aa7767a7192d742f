"""Memory of the machine: what is free, and what a process has taken at most."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path

import torch

MIB = 1 << 20
SHARE = 0.25
"""Part of the free memory that engines may hold between norms and sum."""
_FEW_MIB = 1024 * MIB
"""Taken for free where the system does not say."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Names of glibc's ``malloc.h``."""


def held_limit(device: torch.device) -> int:
    """Bytes that an engine may hold between norms and sum: a quarter of what is free now on the device."""
    return int(SHARE * free_memory(device))


def free_memory(device: torch.device) -> int:
    """Bytes that may still be taken: of the GPU, or of the machine and of the control group the process is in."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = _field("/proc/meminfo", "MemAvailable")
    free = _FEW_MIB if free is None else free
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        allowed, taken = _number(limit), _number(used)
        if allowed is not None and taken is not None:
            free = min(free, max(0, allowed - taken))
    return free


def restart_peak(device: torch.device) -> int:
    """Gives freed memory back, starts the count of ``peak`` afresh, and returns the bytes in use now."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # where that is not allowed, the peak counts from the start of the process
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _field("/proc/self/status", "VmRSS") or peak(device)


def peak(device: torch.device) -> int:
    """Most bytes in use since ``restart_peak``."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = _field("/proc/self/status", "VmHWM")
    if most is not None:
        return most
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def keep_freed_memory() -> None:
    """Lets glibc keep what this process frees for its next step, instead of handing it back to the system.

    A step frees and takes the same large tensors again; each time the system would have to clear every page of them,
    which was found to cost a tenth of a step. Does nothing where the C library is another.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_TRIM_THRESHOLD, -1)  # never
        library.mallopt(_M_MMAP_MAX, 0)  # blocks of their own are always handed back


def keep_within(more: int) -> None:
    """Makes allocations fail, instead of the machine, once this process holds ``more`` bytes beyond what it has."""
    now = _field("/proc/self/status", "VmData")
    if now is not None:
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        wanted = now + more
        resource.setrlimit(
            resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


def _field(path: str, name: str) -> int | None:
    """A field of a /proc file in bytes, None where there is none."""
    with contextlib.suppress(OSError):
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def _number(path: str) -> int | None:
    """A number of bytes that a file holds; None where it is absent or says ``max``."""
    with contextlib.suppress(OSError, ValueError):
        return int(Path(path).read_text(encoding="ascii"))
    return None
