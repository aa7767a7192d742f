"""Fifty training runs killed with SIGKILL, at random and at every boundary of a step (scripts/kill_runs.py: more)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def _script() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "kill_runs.py"
    spec = importlib.util.spec_from_file_location("kill_runs", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill_runs"] = module
    spec.loader.exec_module(module)
    return module


def test_no_killed_run_is_under_counted(tmp_path: Path) -> None:
    script = _script()
    tally = script.harness(50, seed=1, uri=f"sqlite:///{tmp_path / 'ledger.db'}", lease=3)
    assert sum(tally.trials.values()) == 50 and set(script.PLACES) <= set(tally.trials)
    assert tally.released > 50
    assert tally.under == 0
    assert tally.most_over <= 3
    assert tally.over > 0  # a lease of 3 that is never over-counted was not killed within
