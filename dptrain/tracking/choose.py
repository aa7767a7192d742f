"""From ``tracking=...`` to a tracker."""

from __future__ import annotations

from dataclasses import replace

from dptrain.config_tracking import TrackingConfig
from dptrain.tracking.state import State
from dptrain.tracking.tracker import NullTracker, Tracker


def make_tracker(config: TrackingConfig, internal: bool = False, earlier: State | None = None) -> Tracker:
    """The tracker that the settings name; MLflow is loaded at its first use, not here.

    Args:
        config: validated settings.
        internal: whether it takes what must stay in the building (a second experiment).
        earlier: how far a store has the run, of a run that goes on; gone on with where the settings still name that
            store and experiment. The embedded store of the first part counts as named where no other is.

    Raises:
        ConfigError: ``tracking.uri`` is no store that MLflow knows.
    """
    if config.name == "none":
        return NullTracker()
    from dptrain.tracking.mlflow import MlflowTracker, internal_experiment

    name = internal_experiment(config.experiment) if internal else config.experiment
    uri = config.uri
    if earlier is not None and uri is None and earlier.uri.startswith("sqlite:"):
        uri = earlier.uri
    tracker = MlflowTracker(uri, name, allow_http=config.allow_http)
    if earlier is not None and (tracker.uri, name) == (earlier.uri, earlier.experiment):
        again = replace(earlier, points=0, complete=False)
        return MlflowTracker(uri, name, allow_http=config.allow_http, earlier=again, live=True)
    return tracker
