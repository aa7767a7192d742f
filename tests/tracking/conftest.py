from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dptrain.tracking.mlflow import MlflowTracker


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and no experiment of ours; making one takes seconds, copying it none."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    tracker = MlflowTracker(f"sqlite:///{path}", "made-with-the-store")
    assert tracker.start("first", {}, {}, "")
    assert tracker.finish("finished")
    return path


@pytest.fixture
def store(migrated_database: Path, tmp_path: Path) -> Path:
    """A fresh copy of the migrated database."""
    return Path(shutil.copy(migrated_database, tmp_path / "mlflow.db"))
