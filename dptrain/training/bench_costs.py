"""What a step costs beside the gradient: noise, accounting, logging. Measured on a ledger and a log of its own."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dptrain.config import RunConfig
from dptrain.config_budget import LedgerConfig
from dptrain.keystream import Keystream
from dptrain.privacy.grid import grid_step
from dptrain.privacy.lease import OVERHEAD
from dptrain.tracking.metrics_log import MetricsLog
from dptrain.training.assemble import build_noise
from dptrain.training.bench_step import Clock
from dptrain.training.budget import open_account, reserve
from dptrain.training.recorder import evaluation_steps
from dptrain.training.setup import Setup

COMMITS = 5


def step_costs(setup: Setup, planning: float) -> dict[str, Any]:
    """Milliseconds a step, each by itself.

    Args:
        planning: seconds that everything before the first row took, which a run does once.

    Returns:
        ``noise_fast_ms`` and ``noise_secure_ms``; ``planning_ms`` (plan, model, checks and odometer, spread over the
        planned steps); ``commit_ms`` of one ledger commit and ``ledger_ms`` a step, which leases keep to a twentieth
        of the time; ``logging_ms`` of metrics.jsonl, spread over the steps.
    """
    looks = evaluation_steps(setup.plan.steps, setup.config.evaluation.every)
    start = time.perf_counter()
    setup.plan.odometer(looks)
    planning += time.perf_counter() - start
    commit = _commit_seconds(setup)
    return {
        "noise_fast_ms": _noise_ms(setup, "fast"),
        "noise_secure_ms": _noise_ms(setup, "secure"),
        "planning_ms": 1e3 * planning / setup.plan.steps,
        "commit_ms": 1e3 * commit,
        "logging_ms": 1e3 * _record_seconds() * len(looks) / setup.plan.steps,
    }


def ledger_ms(commit_ms: float, step_ms: float) -> float:
    """What commits add to a step of that length, as leases are sized."""
    return min(commit_ms, OVERHEAD * step_ms)


def _noise_ms(setup: Setup, kind: str) -> float:
    mechanism = setup.plan.mechanism
    assert mechanism is not None
    count = setup.num_parameters
    device = next(setup.module.parameters()).device
    grid = grid_step(mechanism.clipping_norm, mechanism.sensitivity_slack, count) if kind == "secure" else None
    plan, clock = replace(setup.plan, noise=kind), Clock(device)
    on_device = setup.config.execution.noise_on_device
    build_noise(plan, Keystream(), count, grid, device, on_device).draw(0, 8)  # compiled loops load on their first call
    noise = build_noise(plan, Keystream(), count, grid, device, on_device)
    return 1e3 * _median(lambda step: noise.draw(step, count), clock, 1.0)


def _commit_seconds(setup: Setup) -> float:
    """One commit of a run like this to a ledger that is thrown away."""
    with tempfile.TemporaryDirectory() as folder, _home(folder):
        config = replace(
            setup.config,
            ledger=LedgerConfig(uri=f"sqlite:///{Path(folder) / 'ledger.db'}", epsilon_limit=1000.0, lease_steps=1),
            run=RunConfig(purpose="trial"),
        )
        ledger = open_account(config, "trial")
        budget = reserve(ledger, config, setup.source.info, setup.plan, "0" * 64, "bench", "trial")
        with budget:
            steps = min(COMMITS, setup.plan.steps)
            start = time.perf_counter()
            for step in range(1, steps + 1):
                budget.intend(step)
            return (time.perf_counter() - start) / steps


@contextmanager
def _home(folder: str) -> Iterator[None]:
    """The user's own room elsewhere for a while: keys and remembered heads of a ledger that is thrown away."""
    held = os.environ.get("DPTRAIN_HOME")
    os.environ["DPTRAIN_HOME"] = folder
    try:
        yield
    finally:
        if held is None:
            del os.environ["DPTRAIN_HOME"]
        else:
            os.environ["DPTRAIN_HOME"] = held


def _record_seconds() -> float:
    record = {
        "step": 1,
        "seconds": 1.0,
        "epsilon": 1.0,
        "budget_remaining": 1.0,
        "public_loss": 1.0,
        "test_accuracy": 0.5,
    }
    with tempfile.TemporaryDirectory() as folder, MetricsLog(Path(folder) / "metrics.jsonl") as log:
        start = time.perf_counter()
        for _ in range(20):
            log.append(record)
        return (time.perf_counter() - start) / 20


def _median(call: Callable[[int], Any], clock: Clock, seconds: float) -> float:
    """Median seconds of up to 20 calls, the first left out, as many as fit."""
    times: list[float] = []
    begun = time.monotonic()
    for step in range(21):
        start = clock.now()
        call(step)
        times.append(clock.now() - start)
        if time.monotonic() - begun > seconds:
            break
    return statistics.median(times[1:] or times)
