"""What a report knows: plain data gathered from the files of a run folder, and nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dptrain.errors import ConfigError
from dptrain.run_folder import RunFolder, read_json

TIERS = ("internal", "public")
FROM_PRIVATE_ROWS = ("batch_size", "clipped_share", "member_loss")
"""Metrics computed from private rows: shown in the public tier only where the statement says they were published."""
NOT_PUBLIC = ("tracking_uri", "mlflow_run_id", "seconds")
"""Facts of a run that name the building or time its work."""
SHOWN_SETTINGS = ("model", "optimizer", "execution", "evaluation", "task", "seed")
"""Parts of config.yaml a report may quote; data paths and tracking addresses are not among them."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run for one tier. Absent files leave empty values; the public tier holds nothing of ``internal/``."""

    tier: str
    run_id: str
    private: bool
    """Whether the run promises anything: true only when its statement says so."""
    result: dict[str, Any]
    plan: dict[str, Any]
    statement: dict[str, Any]
    metrics: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    audit: dict[str, Any] = field(default_factory=dict)
    internal_metrics: list[dict[str, Any]] = field(default_factory=list)

    @property
    def final(self) -> dict[str, Any]:
        """The metrics of the finished model on the public split."""
        return _table(self.result.get("metrics"))

    def get(self, path: str) -> Any:
        """A value by its place, such as ``statement.guarantee.epsilon``; None where any part is missing."""
        first, *rest = path.split(".")
        value: Any = getattr(self, first)
        for name in rest:
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of one metric, where it is a number."""
        pairs = [(m.get("step"), m.get(name)) for m in self.metrics]
        kept = [(s, v) for s, v in pairs if isinstance(s, int | float) and isinstance(v, int | float)]
        return [float(s) for s, _ in kept], [float(v) for _, v in kept]


def read_record(folder: RunFolder, tier: str) -> RunRecord:
    """Gathers a run for ``internal`` (everything) or ``public`` (what may be shown; opens no internal file).

    Raises:
        ConfigError: the tier is unknown, or a file that is there cannot be read.
    """
    if tier not in TIERS:
        raise ConfigError("tier", tier, "is not one of " + ", ".join(TIERS), "choose one of them")
    internal = tier == "internal"
    result = _table(read_json(folder.result))
    statement = _optional(folder.statement)
    metrics = _lines(folder.metrics)
    if not internal:
        published = _table(statement.get("scope")).get("nonprivate_metrics") or []
        hidden = {name for name in FROM_PRIVATE_ROWS if name not in published}
        result = {key: value for key, value in result.items() if key not in NOT_PUBLIC}
        result["metrics"] = _public(_table(result.get("metrics")), hidden)
        metrics = [_public(line, {*hidden, "seconds"}) for line in metrics]
    return RunRecord(
        tier=tier,
        run_id=str(result.get("run_id") or folder.run_id),
        private=result.get("private") is True and statement.get("private") is True,
        result=result,
        plan=_optional(folder.plan),
        statement=statement,
        metrics=metrics,
        settings=_settings(folder.config),
        audit=_optional(folder.internal_audit) if internal else {},
        internal_metrics=_lines(folder.internal_metrics) if internal else [],
    )


def _public(metrics: dict[str, Any], hidden: set[str]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name not in hidden and not name.startswith("audit")}


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _optional(path: Path) -> dict[str, Any]:
    return _table(read_json(path)) if path.is_file() else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    """Records of a metrics file; a line torn by a killed writer is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_bytes().split(b"\n"):
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return [record for record in records if isinstance(record, dict)]


def _settings(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        return {}
    try:
        config = _table(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("file", path, f"cannot be read as YAML ({error})", "restore it from a copy") from error
    return {key: config[key] for key in SHOWN_SETTINGS if key in config}
