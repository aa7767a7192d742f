"""Which way of computing a contribution is taken: timed on the first physical batch, within a limit on memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field

import torch

from dptrain.gradients.bookkeeping.contribution import Contribution
from dptrain.gradients.bookkeeping.refusals import out_of_memory

AS_QUICK = 1.1
"""Times the quickest way's seconds: among ways within it, the one that holds the least memory is taken."""

LONG = 0.1
"""Seconds that the timings of one way may take from the third on."""

SOME = 4
"""Part of a pass's units that ways are timed on: one in so many, where that leaves ``FEWEST``."""
FEWEST = 16
"""Units on which ways are timed at least, where a pass has them."""

Way = Callable[[], Contribution]
OfSome = Callable[[int], Mapping[str, Way]]
"""Number of units -> the ways of the first so many, at the same cost a unit; there may be further ones among them."""


@dataclass
class Timed:
    """What one way costs a pass: seconds for norms and sum, and bytes held between the two."""

    seconds: float
    nbytes: int


@dataclass
class _Tries:
    """The timings of one way: the least seconds of its norms, and of its sum, and what it leaves between the two."""

    way: Way
    norms: float = float("inf")
    sum: float = float("inf")
    spent: float = 0.0
    left: tuple[type, int] = (object, 0)

    def once(self) -> None:
        """Takes the way once more."""
        start = time.perf_counter()
        contribution = self.way()
        middle = _done(contribution)
        contribution.weighted_sum(torch.ones_like(contribution.squared_norm, dtype=torch.float32))
        end = _done(contribution)
        self.norms, self.sum = min(self.norms, middle - start), min(self.sum, end - middle)
        self.spent += end - start
        self.left = (type(contribution), contribution.nbytes)


def _done(contribution: Contribution) -> float:
    """The time at which all that was asked for is computed."""
    if contribution.squared_norm.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class Chooser:
    """Remembers, by kind and shapes of a use, which way is quickest.

    The first use of a kind and shape times every way on some of the units at hand, so that what the trial holds and
    takes stays small beside the pass; of ways that are about as quick, the slimmest is taken, and of those the
    quickest. ``settle`` then turns to slimmer ways, those that cost the least time for the memory they save first,
    until what a whole pass holds fits the limit.

    Attributes:
        memory_limit: bytes that contributions may hold at the end of a backward pass; None for no limit.
        compiled: whether ways by compiled loops may be tried; numba must be installed.
        repeats: timings of which the smallest counts; two where they take longer than ``LONG``.
        users: names of the parameters whose uses have a key, in the order of the first backward pass.
        user: the parameter whose use is being resolved.
    """

    memory_limit: int | None = None
    compiled: bool = False
    repeats: int = 6
    picks: dict[Hashable, str] = field(default_factory=dict)
    timings: dict[Hashable, dict[str, Timed]] = field(default_factory=dict)
    counts: dict[Hashable, int] = field(default_factory=dict)
    users: dict[Hashable, list[str]] = field(default_factory=dict)
    user: str = ""
    settled: bool = False

    def take(
        self, key: Hashable, ways: Mapping[str, Way], units: int = 1, of_some: OfSome | None = None
    ) -> Contribution:
        """The contribution by the way picked for ``key``; on first sight, by the quickest of all.

        Args:
            key: kind and shapes of the use.
            ways: all there are, on all units.
            units: their number.
            of_some: for the trial; left out, that is on all of them.
        """
        if not self.settled:
            self.counts[key] = self.counts.get(key, 0) + 1
            self.users.setdefault(key, []).append(self.user)
        pick = self.picks.get(key)
        if pick is not None and pick in ways:
            return ways[pick]()
        if len(ways) == 1:
            pick, way = next(iter(ways.items()))
            self.picks[key] = pick
            return way()
        few = min(units, max(FEWEST, -(-units // SOME)))
        tried = ways if of_some is None or few == units else of_some(few)
        found = self._trial({name: tried[name] for name in ways if name in tried})
        scale = units / few
        self.timings[key] = {name: Timed(t.seconds * scale, int(t.nbytes * scale)) for name, t in found.items()}
        self.picks[key] = _slimmest_of_the_quick(self.timings[key])
        return ways[self.picks[key]]()

    def _trial(self, ways: Mapping[str, Way]) -> dict[str, Timed]:
        """Times every way, all of them by turns; those for which there is no memory are out of the choice."""
        tries = {name: _Tries(way) for name, way in ways.items()}
        failure: RuntimeError | None = None
        for done in range(self.repeats):
            for name, own in list(tries.items()):
                if done >= 2 and own.spent > LONG:
                    continue
                try:
                    own.once()
                except RuntimeError as error:
                    if not out_of_memory(error):
                        raise
                    failure = error
                    del tries[name]
            if failure is not None and torch.cuda.is_initialized():
                torch.cuda.empty_cache()
        if not tries and failure is not None:
            raise failure
        # Ways that leave the same behind sum it up in the same way: what their sums' timings differ by is chance, and
        # a sum takes longer than a norm.
        return {
            name: Timed(own.norms + min(other.sum for other in tries.values() if other.left == own.left), own.left[1])
            for name, own in tries.items()
        }

    def afresh(self) -> Chooser:
        """One that has counted nothing of a pass that came to nothing."""
        return self if self.settled else Chooser(self.memory_limit, self.compiled, self.repeats)

    def settle(self) -> None:
        """Called after a first pass over a whole model: makes the picks fit the limit."""
        if self.settled:
            return
        self.settled = True
        if self.memory_limit is None:
            return
        while self.held() > self.memory_limit:
            switch = min(self._switches(), default=None)
            if switch is None:
                return
            self.picks[switch[1]] = switch[2]

    def way_of(self, user: str) -> str | None:
        """The way picked for a parameter; None where none was to be picked."""
        return next((self.picks[key] for key, users in self.users.items() if user in users), None)

    def held(self) -> int:
        """Bytes that the contributions of one pass hold, where a choice was open."""
        return sum(self.counts[key] * found[self.picks[key]].nbytes for key, found in self.timings.items())

    def _switches(self) -> list[tuple[float, Hashable, str]]:
        """Every change to a slimmer way, with seconds lost per byte won."""
        switches = []
        for key, found in self.timings.items():
            now = found[self.picks[key]]
            for name, other in found.items():
                if other.nbytes < now.nbytes:
                    switches.append(((other.seconds - now.seconds) / (now.nbytes - other.nbytes), key, name))
        return switches


def _slimmest_of_the_quick(found: Mapping[str, Timed]) -> str:
    most = AS_QUICK * min(timed.seconds for timed in found.values())
    return min((timed.nbytes, timed.seconds, name) for name, timed in found.items() if timed.seconds <= most)[2]
