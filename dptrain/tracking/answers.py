"""What a tracking store answers: which points it has, and its errors in one line without secrets."""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import Any

from dptrain.config_tracking import shown
from dptrain.errors import one_line


def unknown_to(client: Any, run_id: str, rows: list[Any]) -> list[Any]:
    """The points (MLflow's Metric) that the store does not have of a run yet, each as often as it is missing."""
    known: Counter[tuple[str, int, float]] = Counter()
    for name in dict.fromkeys(row.key for row in rows):
        known.update((m.key, m.step, m.value) for m in client.get_metric_history(run_id, name))
    missing = []
    for row in rows:
        identity = (row.key, row.step, row.value)
        if known[identity] > 0:
            known[identity] -= 1
        else:
            missing.append(row)
    return missing


def error_code(error: Exception) -> str:
    """MLflow's name of an error; empty for others."""
    return str(getattr(error, "error_code", ""))


def reason(error: Exception) -> str:
    """An error as one line of at most 200 characters, without passwords and tokens."""
    text = one_line(str(error)) or type(error).__name__
    text = shown(text)
    for name, secret in os.environ.items():
        if len(secret) >= 4 and re.search("PASSWORD|TOKEN|SECRET|KEY", name, re.I):
            text = text.replace(secret, "***")
    return text if len(text) <= 200 else text[:197] + "..."
