"""Shared by all tests: one thread, and settings of hypothesis that do not depend on the machine's speed."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

# Loaded here, before any test module is imported: @settings copies the profile when it decorates.
settings.register_profile("dptrain", deadline=None, max_examples=50, derandomize=True, database=None)
settings.load_profile("dptrain")


@pytest.fixture(autouse=True)
def _own_room(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ledger and signing key of a test are its own, never the user's."""
    monkeypatch.setenv("DPTRAIN_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
