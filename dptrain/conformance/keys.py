"""Keys of key streams, made as a run makes them: as many as there can be, and nobody else's.

A key cannot be looked at, and need not be: two streams of one key begin with the same block. So many are made, and a
block that comes twice tells that keys have too little of chance in them (the birthday bound: of 2^30 possible keys,
140,000 hold nine pairs that are one).
"""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from dptrain.conformance.draws import two_sided
from dptrain.conformance.stand import Result
from dptrain.keystream import Keystream, Purpose

ALPHA = 1e-7
"""False-alarm rate of the bits' law over all places together."""
KEYS = 140_000
"""Of the process: they show 2^30 keys but once in 10,000 times, 2^32 nine times in ten, and 5e-10 are false alarms."""
BESIDE = 200
"""Of every thread, forked process and seed."""
SEED = 1234
SECONDS = 60


def keys_differ() -> Result:
    """First words of many streams: all different, in one process, in threads, behind a fork and behind any seed; and
    every bit of them as often 1 as 0 (exact binomial)."""
    name = "keys"
    own = first_words(KEYS)
    beside: dict[str, Callable[[], list[np.ndarray]]] = {
        "made by threads": _of_threads,
        "made behind a fork": _of_forks,
        "made behind one seed": _of_seeds,
    }
    every = [own]
    for where, make in beside.items():
        more = make()
        together = np.concatenate(more)
        if twice := len(together) - len(np.unique(together)):
            return Result(name, False, f"{twice} of {len(together)} keys {where} come twice")
        every += more
    words = np.concatenate(every)
    if twice := len(words) - len(np.unique(words)):
        return Result(
            name, False, f"{twice} of {len(words)} keys come twice: there are some {_keys(len(words), twice)}"
        )
    counts = [int(((words >> np.uint64(place)) & np.uint64(1)).sum()) for place in range(64)]
    places = [two_sided(count, len(words), 0.5) for count in counts]
    worst = int(np.argmin(places))
    p = min(1.0, 64.0 * places[worst])
    told = f"{len(words)} keys, of threads, forks and one seed too, are all different; bit {worst} of their first words"
    return Result(name, p >= ALPHA, f"{told} is furthest from a half, p {p:.2g} (at least {ALPHA:.0e})")


def first_words(count: int) -> np.ndarray:
    """(count,) the first 64 bits of so many new key streams."""
    words = np.empty(count, dtype=np.uint64)
    for number in range(count):
        words[number] = Keystream().open(Purpose.DRAW, 0).uint64(1)[0]
    return words


def _keys(made: int, twice: int) -> str:
    """How many keys there seem to be, by the birthday bound."""
    return f"2^{np.log2(made**2 / 2 / twice):.0f}"


def _of_threads() -> list[np.ndarray]:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(first_words, [BESIDE] * 4))


def _of_forks() -> list[np.ndarray]:
    """Of two processes that begin as copies of this one, and of this one behind."""
    if "fork" not in multiprocessing.get_all_start_methods():
        return [first_words(BESIDE)]
    fork = multiprocessing.get_context("fork")
    found = list[np.ndarray]()
    for _ in range(2):
        here, there = fork.Pipe(duplex=False)
        child = fork.Process(target=_send, args=(there,))
        child.start()
        there.close()
        if here.poll(SECONDS):
            found.append(here.recv())
        child.join(1)
        if child.is_alive():
            child.kill()
    return [*found, first_words(BESIDE)]


def _send(pipe: Any) -> None:
    pipe.send(first_words(BESIDE))
    pipe.close()


def _of_seeds() -> list[np.ndarray]:
    """Twice, with every generator of the process seeded alike before."""
    found = list[np.ndarray]()
    for _ in range(2):
        with _seeded():
            found.append(first_words(BESIDE))
    return found


@contextmanager
def _seeded() -> Iterator[None]:
    """Python's, numpy's and torch's generators begin at one seed inside; as they were behind."""
    held = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([]):
        random.seed(SEED)
        np.random.seed(SEED)
        torch.manual_seed(SEED)
        try:
            yield
        finally:
            random.setstate(held[0])
            np.random.set_state(held[1])
