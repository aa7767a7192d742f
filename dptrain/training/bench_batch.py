"""The largest physical batch that fits: doubled while what is predicted for the next fits memory and time."""

from __future__ import annotations

import time
from typing import Any

from dptrain.errors import ConfigError
from dptrain.gradients.bookkeeping.refusals import out_of_memory
from dptrain.training.bench_engine import Deadline
from dptrain.training.bench_step import PrivateStep
from dptrain.training.made_up import made_up_batch
from dptrain.training.memory import MIB, free_memory, peak, restart_peak
from dptrain.training.setup import Setup

SHARE = 0.8
"""Of the free memory that a step may take where the user sets no limit."""


def largest_batch(setup: Setup, name: str, first: dict[str, Any], deadline: Deadline) -> dict[str, Any]:
    """Tries twice as many rows as were timed, then twice as many each time, two steps each.

    A size is tried only if a straight line through the last says that it fits, so that no machine is pushed over the
    edge; where the first does not fit the limit, halves are tried instead.

    Args:
        first: ``rows``, ``peak_mib`` and ``seconds`` of what was timed.

    Returns:
        ``rows`` (None where none was found), ``limit_mib``, ``tried`` with rows, peak and seconds of each,
        ``stopped_by``: memory, time, or data (no draw can be larger), and ``straight_line``: rows that would fill the
        limit if memory grew in proportion.
    """
    wanted = setup.config.execution.memory_limit
    device = next(setup.module.parameters()).device
    limit = wanted * MIB if wanted else int(SHARE * free_memory(device))  # 0 is no number of bytes
    most = setup.plan.public_size * setup.plan.max_rows_per_unit
    tried, stopped_by = list[dict[str, Any]](), None
    one = first
    while True:
        tried.append(one)
        size = one["rows"]
        if one["peak_mib"] is None or one["peak_mib"] * MIB > limit:
            size //= 2
            stopped_by = "memory" if size < 1 or any(_fits(t, limit) for t in tried) else None
        elif len(tried) > 1 and size < tried[-2]["rows"]:
            stopped_by = "memory"  # the first half that fits
        elif size >= most:
            stopped_by = "data"
        else:
            size *= 2
            stopped_by = "memory" if 2.1 * one["peak_mib"] * MIB > limit else None
        if stopped_by is None and deadline.left < one["seconds"] * 1.1 * size / one["rows"]:
            stopped_by = "time"
        if stopped_by is not None:
            break
        one = _try(setup, name, size)
    fitting = [t for t in tried if _fits(t, limit)]
    known = max(fitting, key=lambda t: t["rows"], default=None)
    return {
        "rows": known["rows"] if known else None,
        "limit_mib": limit / MIB,
        "tried": tried,
        "stopped_by": stopped_by,
        "straight_line": int(limit / MIB * known["rows"] / max(1.0, known["peak_mib"])) if known else None,
    }


def _fits(one: dict[str, Any], limit: int) -> bool:
    return one["peak_mib"] is not None and one["peak_mib"] * MIB <= limit


def _try(setup: Setup, name: str, size: int) -> dict[str, Any]:
    """Rows, peak (None: there was no memory) and seconds of two steps of that size."""
    device = next(setup.module.parameters()).device
    before, start = restart_peak(device), time.monotonic()
    top: int | None = None
    try:
        PrivateStep(setup, name).steps(made_up_batch(setup, size, min(setup.plan.max_rows_per_unit, size)), 2)
        top = max(0, peak(device) - before)
    except ConfigError as error:
        if error.field != "execution.physical_batch_size":
            raise
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    return {"rows": size, "peak_mib": None if top is None else top / MIB, "seconds": time.monotonic() - start}
