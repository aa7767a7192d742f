"""Disks that fill up, turn read-only or vanish under a run: real ext4 in a file (scripts/disk_faults.py: more)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "disk_faults.py"


@pytest.mark.skipif(os.getuid() != 0, reason="mounts a file system")
@pytest.mark.parametrize("points", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_a_disk_that_goes_leaves_the_last_state_and_the_count(points: int, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--points", str(points), "--seed", "4"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    if "RuntimeError: mkfs.ext4" in done.stderr or "RuntimeError: mount" in done.stderr:
        pytest.skip("no file system may be mounted here")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = re.findall(r"^([^\d\n]+?) +(\d+)", done.stdout, flags=re.MULTILINE)
    figures = {name: int(number) for name, number in found}
    assert figures["disks taken away"] == points
    assert {"full", "read-only", "vanished"} <= set(figures)
    assert figures["one line"] >= points / 2, "a disk that is gone stops a run"
    for name in (
        "counts below what was released",
        "states or disks that cannot be used",
        "bundles that are not whole",
        "keystream addresses opened twice",
        "runs beyond their plan or statement",
        "processes that ended in a traceback",
    ):
        assert figures[name] == 0, name
