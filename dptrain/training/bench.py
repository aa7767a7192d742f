"""What a private step of the user's own model costs, on made-up rows, in a given time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from dptrain.config_bench import BenchConfig
from dptrain.errors import BudgetRefused, ConfigError
from dptrain.gradients.bookkeeping.engine import BookkeepingEngine
from dptrain.gradients.protocol import trainable
from dptrain.training.bench_batch import largest_batch
from dptrain.training.bench_costs import step_costs
from dptrain.training.bench_engine import Deadline, measure_engine, measure_plain
from dptrain.training.bench_step import Clock
from dptrain.training.made_up import made_up_batch, prepare_without_rows
from dptrain.training.memory import MIB, keep_freed_memory, peak, restart_peak
from dptrain.training.setup import Setup

ENGINES_SHARE, BATCH_SHARE = 0.6, 0.25
"""Of the time that is left: for timing engines, and for seeking the largest physical batch."""
BLUR = 64 * MIB
"""Where the peak stands this far above what is in use when it was just started afresh, the system cannot do that."""


def open_bench(config: BenchConfig) -> Setup:
    """Everything of a run but its rows, checked; see ``prepare_without_rows``.

    Raises:
        ConfigError: as there, or a plan without privacy, which has nothing to be compared.
    """
    return prepare_without_rows(config, "trains plainly, and there is nothing to compare")


def bench(setup: Setup, config: BenchConfig, started: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Measures engine after engine, the largest physical batch, and what else a step costs.

    Args:
        started: ``time.monotonic()`` when the command began; ``bench.seconds`` counts from there.
        say: told what is being done.

    Returns:
        plain data; see ``bench_text``.
    """
    planning = time.monotonic() - started
    deadline = Deadline(started + config.bench.seconds)
    device = next(setup.module.parameters()).device
    if device.type == "cpu":
        keep_freed_memory()  # as training does; for the plain step too
    chosen = "bookkeeping" if config.clipping.engine == "auto" else config.clipping.engine
    names = list(dict.fromkeys([chosen, *config.bench.engines]))
    say("noise, accounting, logging")
    costs = _costs(setup, planning)
    rows = config.execution.physical_batch_size
    batch = made_up_batch(setup, rows, min(setup.plan.max_rows_per_unit, rows))
    say("plain step")
    plain = measure_plain(setup, batch)
    in_use = restart_peak(device)
    known = peak(device) - in_use < BLUR
    engines: dict[str, dict[str, Any]] = {}
    details: dict[str, Any] = {}
    until = time.monotonic() + ENGINES_SHARE / (ENGINES_SHARE + BATCH_SHARE) * max(0.0, deadline.left)
    for place, name in enumerate(names):
        say(f"engine {name} ({place + 1} of {len(names)})")
        share = (until - time.monotonic()) / (len(names) - place) / 2
        by = deadline if name == chosen else Deadline(until)  # where time is short, the chosen engine has it all
        found = measure_engine(setup, name, batch, max(0.0, share), by)
        engine = found.pop("engine", None)
        if isinstance(engine, BookkeepingEngine):
            details = _details(setup, engine)
        engines[name] = found
    if not known:
        for one in (plain, *(e for e in engines.values() if "ratio" in e)):
            one["peak_mib"] = None
    say("largest physical batch")
    largest = None
    if known and "ratio" in engines[chosen]:
        timed = engines[chosen]
        first = {"rows": rows, "peak_mib": timed["peak_mib"], "seconds": timed["warm_up_seconds"]}
        largest = largest_batch(setup, chosen, first, deadline)
    return {
        "model": setup.spec.name,
        "data": setup.source.info.name,
        "parameters": setup.num_parameters,
        "row": list(setup.spec.input_shape),
        "rows": rows,
        "rows_per_unit": min(setup.plan.max_rows_per_unit, rows),
        "device": str(device),
        "dtype": config.execution.dtype,
        "clock": Clock(device).what,
        "noise": setup.plan.noise,
        "private_rows_read": 0,
        "chosen": chosen,
        "plain": plain,
        "engines": engines,
        "bookkeeping": details,
        "largest_batch": largest,
        "costs": costs,
        "steps": setup.plan.steps,
        "seconds": time.monotonic() - started,
    }


def _costs(setup: Setup, planning: float) -> dict[str, Any]:
    try:
        return step_costs(setup, planning)
    except (BudgetRefused, ConfigError) as error:
        return {"refused": str(error)}


def _details(setup: Setup, engine: BookkeepingEngine) -> dict[str, Any]:
    """The pick of every parameter, and functions without a rule."""
    shapes = {name: list(p.shape) for name, p in trainable(setup.module).items()}
    return {
        "ways": [{"parameter": n, "shape": s, "way": engine.ways.get(n, "not reached")} for n, s in shapes.items()],
        "without_rule": engine.without_rule,
    }
