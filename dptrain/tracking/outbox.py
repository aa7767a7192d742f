"""A thread that carries things to a slow or absent place, so that the run never waits for it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

INTERVAL = 2.0
"""Seconds that metrics may lie before they go out together."""
FIRST_PAUSE = 0.5
"""Seconds before the second attempt; each further pause is twice as long."""
LONGEST_PAUSE = 30.0
"""Most seconds between two attempts while the run goes on."""
BATCH = 1000
"""Most metric values MLflow takes in one call."""


MOST_WAITING = 10_000
"""Most things that wait in memory. What comes on top is left to the run folder, from where it can be sent later."""


@dataclass(frozen=True)
class Points:
    """Metrics of one step; they stay together in one batch."""

    step: int
    timestamp: int  # milliseconds since 1970
    metrics: dict[str, float]


class Outbox:
    """Delivers in order, retries what failed, and drops only what the other side refuses for good.

    Args:
        send: delivers the points of several steps at once; raises when it could not.
        is_lasting: whether trying again after this error is pointless.
        bounded: whether it leaves out what exceeds ``MOST_WAITING``; a replay, which has it all at hand, does not.
    """

    def __init__(
        self, send: Callable[[list[Points]], None], is_lasting: Callable[[Exception], bool], bounded: bool = True
    ) -> None:
        self._bounded = bounded
        self._send = send
        self._is_lasting = is_lasting
        self._waiting: deque[Points | Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._urgent = False
        self._closing = False
        self._abandoned = False
        self._refused = 0
        self._reached = False
        self.tried = threading.Event()
        """Set once the first thing was delivered or failed."""
        self.trouble: Exception | None = None
        """The last error, kept after a later success."""
        self._thread = threading.Thread(target=self._run, name="dptrain-tracking", daemon=True)
        self._thread.start()

    def points(self, points: Points) -> None:
        """Takes the metrics of one step; they go out within a couple of seconds. Left out when too many wait."""
        with self._changed:
            if self._bounded and len(self._waiting) >= MOST_WAITING:
                self._refused += 1
                return
            self._waiting.append(points)
            self._changed.notify()

    def job(self, job: Callable[[], None]) -> None:
        """Takes anything else; it goes out at once, after what came before it. May be called again if it raises."""
        with self._changed:
            self._waiting.append(job)
            self._urgent = True
            self._changed.notify()

    def close(self, patience: float) -> bool:
        """Delivers what waits; gives up after ``patience`` seconds without one success, and after eight times that
        whatever happens. True when all arrived."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        waiting = len(self._waiting)
        deadline = time.monotonic() + patience
        last = time.monotonic() + 8 * patience
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._thread.join(0.05)
            if len(self._waiting) < waiting:
                waiting = len(self._waiting)
                deadline = min(time.monotonic() + patience, last)
        self._abandoned = True
        return not self._thread.is_alive() and not self._waiting and not self._refused

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                self._changed.wait_for(lambda: self._urgent or self._closing, timeout=INTERVAL)
                self._urgent = False
            failed = not self._drain()
            if not failed:
                pause = FIRST_PAUSE
                continue
            with self._changed:
                if self._abandoned or (self._closing and not self._reached):
                    return  # a place never reached gets one last attempt
                self._changed.wait_for(lambda: self._closing, timeout=pause)
                if self._closing:
                    self._changed.wait(timeout=0.2)
            pause = min(pause * 2, LONGEST_PAUSE)

    def _drain(self) -> bool:
        """Delivers all that waits; False at the first thing to be tried again."""
        while True:
            with self._changed:
                batch = self._next()
            if not batch:
                return True
            try:
                if isinstance(batch[0], Points):
                    self._send([item for item in batch if isinstance(item, Points)])
                else:
                    batch[0]()
                self._reached = True
            except Exception as error:
                self.trouble = error
                self.tried.set()
                if not self._is_lasting(error):
                    return False
                self._refused += len(batch)
            self.tried.set()
            with self._changed:
                for _ in batch:
                    self._waiting.popleft()

    def _next(self) -> list[Points | Callable[[], None]]:
        """The first job alone, or the leading points that fit one batch."""
        batch: list[Points | Callable[[], None]] = []
        values = 0
        for item in self._waiting:
            if not isinstance(item, Points):
                return batch or [item]
            values += len(item.metrics)
            if batch and values > BATCH:
                return batch
            batch.append(item)
        return batch
