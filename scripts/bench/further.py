"""Further models: those that other people train, each with the layers that an engine written for a table may miss."""

from __future__ import annotations

from .workloads import Workload

FURTHER: dict[str, Workload] = {}
