"""What the process does with memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from dptrain.training.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    held = [torch.ones(16_000_000) for _ in range(3)]  # 64 MB each: more than glibc keeps of itself
    del held
for _ in range(3):
    step()
before = faults()
for _ in range(3):
    step()
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's own")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    """Left alone, every step takes its 192 MB anew, a page at a time."""
    counts = {
        how: int(subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True).stdout)
        for how in ("left", "kept")
    }
    assert counts["kept"] < 1000
    assert counts["left"] > 10 * counts["kept"]
