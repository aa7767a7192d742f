"""Runs killed with SIGKILL and resumed until they finish; a witness outside counts (scripts/kill_resume.py: more).

Kills by an exception at single places, without processes, are in tests/training/test_training_resume.py.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "kill_resume.py"


@pytest.mark.parametrize("kills", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_killed_and_resumed_run_is_under_counted(kills: int, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--kills", str(kills), "--seed", "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = re.findall(r"^([^\d\n]+?) +(\d+)", done.stdout, flags=re.MULTILINE)
    figures = {name: int(number) for name, number in found}
    assert figures["kills"] == kills
    assert figures["noise releases seen by the witness"] > kills
    for name in (
        "counts below what was released",
        "states that do not open",
        "keystream addresses opened twice",
        "runs beyond their plan or statement",
    ):
        assert figures[name] == 0, name
    assert figures["most steps counted too many by a strike"] <= 3
