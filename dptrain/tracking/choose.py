"""From ``tracking=...`` to a tracker."""

from __future__ import annotations

from dptrain.config import TrackingConfig
from dptrain.tracking.tracker import NullTracker, Tracker


def make_tracker(config: TrackingConfig, internal: bool = False) -> Tracker:
    """The tracker that the settings name; MLflow is loaded at its first use, not here.

    Args:
        config: validated settings.
        internal: whether it takes what must stay in the building (a second experiment).

    Raises:
        ConfigError: ``tracking.uri`` is no store that MLflow knows.
    """
    if config.name == "none":
        return NullTracker()
    from dptrain.tracking.mlflow import MlflowTracker, internal_experiment

    name = internal_experiment(config.experiment) if internal else config.experiment
    return MlflowTracker(config.uri, name, allow_http=config.allow_http)
