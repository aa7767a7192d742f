"""CPU cost of clipping per coordinate and row on one core, given per-row gradients: norm, scale, round, sum.

taskset -c 0 python scripts/bench_clip.py [--rows 256] [--parameters 26010] [--repeats 7]
"""

from __future__ import annotations

import argparse
import time

import torch

from dptrain.gradients.clip import add_clipped_rows
from dptrain.gradients.protocol import ClippingRule
from dptrain.privacy.grid import grid_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--parameters", type=int, default=26010)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows, size = given.rows, given.parameters
    grads = [torch.randn(rows, size - size // 50), torch.randn(rows, size // 50)]
    total = torch.zeros(size, dtype=torch.float64)
    print(f"{rows} rows of {size:,} float32 coordinates, torch {torch.__version__}, one core\n")
    print("|unit|sum|CPU ns per coordinate and row|\n|---|---|---|")
    for unit, slots in (("record", torch.arange(rows)), ("user of 4 rows", torch.arange(rows) // 4)):
        for grid in (grid_step(1.0, 1e-3, size), None):
            least = float("inf")
            for _ in range(given.repeats):
                start = time.process_time()
                add_clipped_rows(grads, slots, torch.ones(rows), ClippingRule(1.0, grid), total)
                least = min(least, time.process_time() - start)
            print(f"|{unit}|{'grid' if grid else 'float64'}|{least / rows / size * 1e9:.2f}|", flush=True)


if __name__ == "__main__":
    main()
