"""One cell of the table in a process of its own: time, memory or exactness of one contender on one workload."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import random
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .contenders import Plain, Settings, build
from .workloads import WORKLOADS, Workload, growth, mean_loss

WARM_UP = 6
"""Pairs that are not counted: for about as many, a process still asks the system for memory."""
CLOCKS: dict[str, Callable[[], float]] = {
    "cpu": time.process_time,
    "thread": time.thread_time,
    "wall": time.perf_counter,
}


class _EnoughError(Exception):
    """Ends ``Contender.run``."""


def workload_named(name: str) -> Workload:
    """A workload of the table, of ``further`` or of a sweep (``AXIS/NAME``)."""
    if "/" in name:
        axis, _, point = name.partition("/")
        return dict(growth(axis))[point]
    if name in WORKLOADS:
        return WORKLOADS[name]
    from .further import FURTHER

    return FURTHER[name]


def measure_time(workload: Workload, engine: str, settings: Settings, clock: str, pairs: int, seconds: float) -> dict:
    """DP step and plain step by turns in this process.

    Args:
        pairs: number of pairs; 0 takes 5 to 60, as many as fit in ``seconds``.

    Returns:
        ``ratio``: median over the pairs of DP / plain; ``low`` and ``high``: its 95 % bootstrap interval.
    """
    inputs, targets = workload.rows()
    plain = Plain(workload, settings, inputs, targets)
    contender = build(engine, workload, settings, inputs, targets)
    now = CLOCKS[clock]
    plain_times: list[float] = []
    dp_times: list[float] = []
    begun, mark = time.perf_counter(), now()

    def after_dp_step() -> None:
        nonlocal mark, begun
        middle = now()
        plain.step()
        end = now()
        dp_times.append(middle - mark)
        plain_times.append(end - middle)
        taken = len(dp_times) - WARM_UP
        if taken <= 0:
            begun = time.perf_counter()
        spent = time.perf_counter() - begun
        if taken == pairs if pairs else taken >= 60 or (taken >= 5 and spent > seconds):
            raise _EnoughError
        mark = now()

    with contextlib.suppress(_EnoughError):
        contender.run(after_dp_step)
    plain_times, dp_times = plain_times[WARM_UP:], dp_times[WARM_UP:]
    ratios = [d / p for d, p in zip(dp_times, plain_times, strict=True)]
    low, high = interval(ratios)
    return {
        "ratio": statistics.median(ratios),
        "low": low,
        "high": high,
        "pairs": len(ratios),
        "plain_ms": 1e3 * statistics.median(plain_times),
        "dp_ms": 1e3 * statistics.median(dp_times),
    }


def interval(values: list[float], resamples: int = 2000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the median (Efron 1979)."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(resamples))
    return medians[resamples // 40], medians[-1 - resamples // 40]


def measure_memory(workload: Workload, engine: str, settings: Settings) -> dict:
    """Most resident memory during three steps above that of the process with the model and the data built.

    The same contender first takes steps on a tiny model, so that imports, tables and thread pools are in memory
    before the model is; the optimizer's state and whatever the engine sets up count.
    """
    tiny = WORKLOADS["tiny"]
    if workload is not tiny:
        _some_steps(build(engine, tiny, replace(settings, checkpoint=""), *tiny.rows()).run)
    inputs, targets = workload.rows()
    held = workload.model()  # stands for the built model, and is given back when the contender has built its own
    _trim()
    _reset_peak()
    before = _status("VmRSS")
    del held
    _trim()
    contender = build(engine, workload, settings, inputs, targets)
    _some_steps(contender.run)
    return {"peak_mib": (_peak() - before) / 1024, "built_mib": before / 1024}


def _some_steps(run: Callable[[Callable[[], None]], None], count: int = 3) -> None:
    left = count

    def after() -> None:
        nonlocal left
        left -= 1
        if not left:
            raise _EnoughError

    with contextlib.suppress(_EnoughError):
        run(after)


def keep_freed_memory() -> None:
    """Lets the C library keep freed memory, as ``dptrain train`` does: for plain steps and every contender alike."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-1, -1)
        mallopt(-4, 0)


def _trim() -> None:
    """Gives freed memory back to the system, so that it does not hide what is taken later."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _reset_peak() -> None:
    with contextlib.suppress(OSError):  # where that is not allowed, the peak counts from the start of the process
        Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    """A field of /proc/self/status in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _peak() -> int:
    try:
        return _status("VmHWM")
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure_error(workload: Workload, engine: str, settings: Settings, rows: int) -> dict:
    """Distance of the clipped sum from float64 autograd on one row at a time, relative to the latter's norm.

    The clipping norm is the median of the true norms, so that half of the units are clipped.
    """
    inputs, targets = workload.rows(min(rows, workload.batch))
    for_peer = engine.startswith("opacus_")
    clip, truth = reference(workload.model(for_peer).double(), inputs, targets, settings.unit_rows)
    contender = build(engine, workload, replace(settings, clip=clip, sigma=0.0), inputs, targets)
    found = contender.clipped_sum()
    missing = [name for name in truth if name not in found]
    off = sum(
        float((found[n].double() - t).square().sum() if n in found else t.square().sum()) for n, t in truth.items()
    )
    return {"error": (off / sum(float(t.square().sum()) for t in truth.values())) ** 0.5, "missing": missing}


def reference(
    model: torch.nn.Module, inputs: Tensor, targets: Tensor, unit_rows: int
) -> tuple[float, dict[str, Tensor]]:
    """Median norm of the units' gradients and the sum clipped at it: one backward pass a row, in float64, twice."""
    if inputs.is_floating_point():
        inputs = inputs.double()
    moving = {name: p for name, p in model.named_parameters() if p.requires_grad}
    units = list(zip(inputs.split(unit_rows), targets.split(unit_rows), strict=True))

    def gradients(x: Tensor, y: Tensor) -> list[Tensor]:
        model.zero_grad()
        for row in range(len(x)):
            (mean_loss(model(x[row : row + 1]), y[row : row + 1]) / len(x)).backward()
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in moving.values()]

    norms = [float(sum((g.square().sum() for g in gradients(x, y)), torch.zeros(())) ** 0.5) for x, y in units]
    clip = statistics.median(norms)
    total = [torch.zeros_like(p) for p in moving.values()]
    for norm, (x, y) in zip(norms, units, strict=True):
        for own, gradient in zip(total, gradients(x, y), strict=True):
            own.add_(gradient, alpha=min(1.0, clip / norm))
    return clip, {name: t.detach() for name, t in zip(moving, total, strict=True)}


def run_cell(order: dict[str, Any]) -> dict[str, Any]:
    """Does what the order says and returns the result, or ``error`` in one line."""
    keep_freed_memory()
    torch.set_num_threads(order["threads"])
    sigma = 0.0 if order["noise"] == "none" else 1.0
    settings = Settings(order["noise"], 1.0, order["unit_rows"], sigma, order["memory_limit"], order["parts"])
    settings = replace(settings, checkpoint=order["checkpoint"])
    try:
        workload = workload_named(order["workload"])
        if order["what"] == "time":
            found = measure_time(workload, order["engine"], settings, order["clock"], order["reps"], order["seconds"])
        elif order["what"] == "mem":
            found = measure_memory(workload, order["engine"], settings)
        else:
            found = measure_error(workload, order["engine"], settings, order["rows"])
    except Exception as error:  # a peer may fail in any way; the table shows how
        text = " ".join(str(error).split()) or repr(error)
        return order | {"failed": f"{type(error).__name__}: {text[:300]}"}
    return order | found | {"torch": torch.__version__}
