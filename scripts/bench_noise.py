"""CPU cost of noise per million coordinates on one core. Prints the table of docs/results/noise_cost.md.

    taskset -c 0 python scripts/bench_noise.py [--millions 1] [--repeats 100]

CPU time, so that a busy machine spoils the figures less; the least of the repeats.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections import deque
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from dptrain.keystream import Keystream, Purpose
from dptrain.noise.fast import FastNoise
from dptrain.noise.protocol import Noise
from dptrain.noise.secure import SecureNoise

GRID_STEPS = 2.0**20
"""Standard deviation in grid steps: that of 26,010 parameters at sigma 1 and slack 1e-3 is 2^19.3."""


def methods(count: int) -> Iterator[tuple[str, Callable[[int], object]]]:
    """Every way, by name, as a function of the step."""
    plain = torch.empty(count)
    words = np.empty(count, dtype=np.int64)

    def pieces(noise: Noise) -> Callable[[int], object]:
        return lambda step: deque(noise.pieces(step, count), maxlen=0)

    for compiled in (False, True) if find_spec("numba") else (False,):
        how = "compiled" if compiled else "torch"
        yield (
            f"secure, {how}: exact rounded Gaussian on the grid",
            pieces(SecureNoise(Keystream(), GRID_STEPS, compiled)),
        )
        yield f"secure, {how}, S = 2^24 (5 million parameters)", pieces(SecureNoise(Keystream(), 2.0**24, compiled))
        yield (
            f"secure, {how}, S = 2^30 (more pairs settled exactly)",
            pieces(SecureNoise(Keystream(), 2.0**30, compiled)),
        )
        yield f"fast, {how}: float32", pieces(FastNoise(Keystream(), 1.0, compiled=compiled))
    yield "torch.normal float32 alone", lambda step: torch.normal(0.0, 1.0, (count,))
    yield "tensor.normal_ float32 in place", lambda step: plain.normal_()
    stream = Keystream().open(Purpose.NOISE, 0)
    yield "AES-256-CTR keystream alone, 8 bytes a coordinate", lambda step: stream.fill(words)


def cost(method: Callable[[int], object], count: int, repeats: int) -> float:
    """Milliseconds of CPU per million coordinates."""
    method(0)
    least = float("inf")
    for step in range(1, repeats + 1):
        start = time.process_time()
        method(step)
        least = min(least, time.process_time() - start)
    return least / count * 1e9


def processor() -> str:
    """The processor's name, as the operating system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=1)
    parser.add_argument("--repeats", type=int, default=100)
    given = parser.parse_args()
    torch.set_num_threads(1)
    count = int(given.millions * 1e6)
    print(f"{processor()}, one core, torch {torch.__version__}, numpy {np.__version__}, {count:,} coordinates a draw\n")
    print("|noise|CPU ms per million|\n|---|---|")
    for name, method in methods(count):
        print(f"|{name}|{cost(method, count, given.repeats):.1f}|", flush=True)


if __name__ == "__main__":
    main()
