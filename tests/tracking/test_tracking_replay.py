"""Two processes that send one run: the second is told so, and makes no second run."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from dptrain.errors import ConfigError
from dptrain.tracking.replay import replay


def test_a_second_process_is_refused_and_sends_nothing(tmp_path: Path) -> None:
    run, store = tmp_path / "run", tmp_path / "store.db"
    (run / "internal").mkdir(parents=True)
    (run / "plan.json").write_text("{}")
    handle = os.open(run / "internal", os.O_RDONLY)  # a lock of another open file is another process's
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="is being synced by another process"):
            replay(run, f"sqlite:///{store}")
        assert not store.exists()
    finally:
        os.close(handle)
    with pytest.raises(ConfigError) as refused:  # the lock is gone, and the next thing that is wrong is said
        replay(run)
    assert "another process" not in str(refused.value)
    with pytest.raises(ConfigError) as refused:  # a refusal lets go of it, too
        replay(run)
    assert "another process" not in str(refused.value)
