"""What sealing and signing cost: CPU time of one core to seal, open and sign a file; the disk is left out.

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

from dptrain.bundle_files import WEIGHTS, file_facts, listed_files, manifest_text, signature_text
from dptrain.checkpoint.seal import read_sealed, rotate, write_sealed
from dptrain.checkpoint.sealing_key import master_key
from dptrain.signing import load_signer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    shm = Path("/dev/shm")
    data = secrets.token_bytes(1 << 20) * given.megabytes
    old, new = master_key(secrets.token_bytes(32)), master_key(secrets.token_bytes(32))
    rates: dict[str, list[float]] = {"seal": [], "open": []}
    signing: list[tuple[float, float]] = []
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
            signing.append(signed(Path(folder), data))
    for what, found in rates.items():
        print(f"{what:8} {statistics.median(found):8.0f} MB/s of CPU time (median of {given.repeats})")
    print(f"new key  {statistics.median(rewritten) * 1e3:8.2f} ms for {len(data) / 1e6:.0f} MB: headers only")
    cpu, wall = (statistics.median(column) for column in zip(*signing, strict=True))
    print(f"sign     {cpu:8.2f} s of CPU time, {wall:.2f} s by the clock, for {len(data) / 1e6:.0f} MB of weights")


def signed(folder: Path, data: bytes) -> tuple[float, float]:
    """(CPU seconds, seconds) to sign a bundle as ``save_bundle`` does: digests of its files, manifest, signature."""
    file = folder / WEIGHTS
    for name in listed_files(False):
        (folder / name).write_bytes(data if name == WEIGHTS else b"{}")
    signer = load_signer(folder / "signing.key")
    start, began = time.process_time(), time.monotonic()
    text = manifest_text({name: file_facts(folder / name) for name in listed_files(False)})
    (folder / "signature.json").write_text(signature_text(text.encode(), signer))
    took = time.process_time() - start, time.monotonic() - began
    file.unlink()
    return took


if __name__ == "__main__":
    main()
