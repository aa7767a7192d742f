"""What a private step of your own model costs: engine by engine, layer by layer, before anything is spent.

dptrain bench experiment=quickstart
python recipes/bench.py data=fashion_mnist model=tanh_cnn bench.seconds=120 format=json
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from dptrain.cli import guarded
from dptrain.config_bench import BenchConfig
from dptrain.launch import launch


def run(config: BenchConfig) -> dict[str, Any]:
    """Times every engine beside a plain step on made-up rows and prints the tables; returns them as plain data.

    Reads no private row, opens no account, writes nothing.

    Raises:
        ConfigError: what a training run would refuse before its first row.
    """
    started = time.monotonic()
    from dptrain.training.bench import bench, open_bench
    from dptrain.training.bench_text import bench_text

    def say(what: str) -> None:
        print(f"bench {time.monotonic() - started:5.1f} s  {what}", file=sys.stderr, flush=True)

    say("model, plan, checks")
    setup = open_bench(config)
    found = bench(setup, config, started, say)
    print(json.dumps(found, indent=2, allow_nan=False) if config.format == "json" else bench_text(found))
    return found


def main(arguments: list[str]) -> None:
    """Entry of ``dptrain bench``."""
    launch("bench", arguments)


if __name__ == "__main__":
    sys.exit(guarded("bench", sys.argv[1:]))
