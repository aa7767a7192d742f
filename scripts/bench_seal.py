"""What sealing costs: CPU time of one core to seal and to open a file, the disk left out and in.

    python scripts/bench_seal.py [--megabytes 1000] [--repeats 3]

Writes into a folder in memory where the system has one (/dev/shm), else into a temporary folder. Results:
docs/results/resume.md.
"""

from __future__ import annotations

import argparse
import os
import secrets
import statistics
import tempfile
import time
from pathlib import Path

from dptrain.checkpoint.seal import read_sealed, rotate, write_sealed
from dptrain.checkpoint.sealing_key import master_key


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    shm = Path("/dev/shm")
    data = secrets.token_bytes(1 << 20) * given.megabytes
    old, new = master_key(secrets.token_bytes(32)), master_key(secrets.token_bytes(32))
    rates: dict[str, list[float]] = {"seal": [], "open": []}
    rewritten = []
    with tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else None) as folder:
        for number in range(given.repeats):
            file = Path(folder, f"{number}.sealed")
            start = time.process_time()
            write_sealed(file, [data], old, "bench")
            sealed = time.process_time()
            back = read_sealed(file, {old.id: old}, "bench")
            opened = time.process_time()
            rates["seal"].append(len(data) / 1e6 / (sealed - start))
            rates["open"].append(len(data) / 1e6 / (opened - sealed))
            if back != data:
                raise SystemExit("what came out is not what went in")
            del back
            start = time.monotonic()
            rotate(file, {old.id: old}, new)
            rewritten.append(time.monotonic() - start)
            file.unlink()
    for what, found in rates.items():
        print(f"{what:8} {statistics.median(found):8.0f} MB/s of CPU time (median of {given.repeats})")
    print(f"new key  {statistics.median(rewritten) * 1e3:8.2f} ms for {len(data) / 1e6:.0f} MB: headers only")


if __name__ == "__main__":
    main()
