"""What a person sees while a run goes: a bar on a terminal, one plain line an evaluation elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

SHORT = {"public_loss": "loss", "test_accuracy": "accuracy", "test_mae": "mae"}
"""Metrics shown while a run goes -> their names on the bar."""
BAR = "{n_fmt}/{total_fmt} |{bar}| {postfix}{remaining} left"


class Progress:
    """Progress of one run. Shows only what the public tier may hold.

    On a terminal: ``320/1170 |####    | loss 0.512, accuracy 0.873, ε 1.42/3.00, 0:41 left``.
    Elsewhere: ``step 320/1170  public_loss 0.512  test_accuracy 0.873  epsilon 1.42/3.00  left 0:41``.

    Args:
        total_steps: planned number of steps.
        epsilon_budget: the ε that the plan allows; None without privacy.
        stream: where to write; standard error when None.
        watch: what the run's self-check says now (``noise 0.999 ± .004, clipping ok, sampling ok``); None: none.
    """

    def __init__(
        self,
        total_steps: int,
        epsilon_budget: float | None,
        stream: TextIO | None = None,
        watch: Callable[[], str] | None = None,
    ) -> None:
        self._total = total_steps
        self._budget = epsilon_budget
        self._stream = stream if stream is not None else sys.stderr
        self._watch = watch
        self._step = 0
        self._started = time.monotonic()
        self._bar = _bar(total_steps, self._stream) if self._stream.isatty() else None

    def update(self, step: int) -> None:
        """Says that ``step`` steps are done."""
        if self._bar is not None:
            self._bar.update(step - self._step)
        self._step = step

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """Shows one line of metrics.jsonl: step, public loss, accuracy (or error), ε used of the budget."""
        step = int(record.get("step", self._step))
        if self._bar is not None:
            parts = [f"{SHORT[key]} {number(record[key])}" for key in SHORT if key in record]
            if "epsilon" in record:
                parts.append(f"ε {self._spent(record['epsilon'])}")
            parts += self._watched()
            self._bar.set_postfix_str("".join(f"{part}, " for part in parts), refresh=True)
            return
        parts = [f"step {step}/{self._total}"]
        parts += [f"{key} {number(record[key])}" for key in SHORT if key in record]
        if "epsilon" in record:
            parts.append(f"epsilon {self._spent(record['epsilon'])}")
        parts.append(f"left {self._left(step)}")
        parts += self._watched()
        print("  ".join(parts), file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the bar where it stands."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _watched(self) -> list[str]:
        said = "" if self._watch is None else self._watch()
        return [said] if said else []

    def _spent(self, epsilon: Any) -> str:
        used = number(epsilon, digits=2)
        return used if self._budget is None else f"{used}/{number(self._budget, digits=2)}"

    def _left(self, step: int) -> str:
        if step <= 0:
            return "?"
        return clock((time.monotonic() - self._started) * max(self._total - step, 0) / step)


def summary(lines: list[tuple[str, str]], stream: TextIO | None = None) -> None:
    """Prints label and value a line, values aligned; values are never cut, so that paths can be copied."""
    width = max((len(label) for label, _ in lines), default=0)
    for label, value in lines:
        print(f"{label:<{width}}  {value}", file=stream if stream is not None else sys.stdout)


def number(value: Any, digits: int = 3) -> str:
    """A number with fixed decimals; ``n/a`` for None, NaN and infinities."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "n/a"
    return f"{value:.{digits}f}"


def clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss from one hour on."""
    whole = int(seconds + 0.5)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def _bar(total: int, stream: TextIO) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, file=stream, dynamic_ncols=True, bar_format=BAR, mininterval=0.2)
