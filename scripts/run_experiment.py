"""Runs one shipped experiment over several seeds (splits) and prints its row of results.

    python scripts/run_experiment.py NAME seeds=10 [key=value ...]      seeds 0 to 9; seeds=0,8,9 names them

Every seed is a whole run of the recipe (``recipes/finetune.py`` or ``recipes/train.py``, as the file's second line
says): the seed chooses the split, where the set has no official one; draws and noise are fresh. Shipped sets are
public, so their runs have purpose ``debug`` and charge nobody. Runs go to a temporary folder.

A probe's features are computed once a row and held in memory, as the frozen body looks at one row at a time; splits
then share them. Prints Markdown: one line a seed, then mean, 95 % interval (Student's t over seeds), sigma, epsilon,
CPU seconds, and the SHA-256 of the experiment's file.
"""

from __future__ import annotations

import hashlib
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dptrain.cli import recipe
from dptrain.compose import compose, config_dir
from dptrain.models.features import cached_map
from dptrain.models.frozen import FrozenBody
from dptrain.run_folder import read_json
from dptrain.training import probe_rows

BLOCK = 640
"""Rows through the frozen body at once."""


class HeldFeatures:
    """A frozen body's features by row; rows that were not met before go through the body, or come from the cache."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, bytes], Tensor] = {}

    def __call__(self, body: FrozenBody, inputs: Tensor, cache_dir: Path | None) -> Tensor:
        """(N, *input_shape) -> (N, F)."""
        keys = [(body.version, row.numpy().tobytes()) for row in inputs]
        if all(key not in self._rows for key in keys):
            self._rows.update(zip(keys, cached_map("body", body, inputs, cache_dir), strict=True))
        fresh = [i for i, key in enumerate(keys) if key not in self._rows]
        for start in range(0, len(fresh), BLOCK):
            block = fresh[start : start + BLOCK]
            self._rows.update(zip([keys[i] for i in block], body(inputs[block]), strict=True))
        return torch.stack([self._rows[key] for key in keys])


def command_of(file: Path) -> str:
    """train or finetune, from the launch command on the file's second line."""
    return file.read_text(encoding="utf-8").splitlines()[1].removeprefix("# dptrain ").split()[0]


def one_run(command: str, overrides: list[str], folder: Path) -> dict[str, Any]:
    """result.json of one run, with its sigma and CPU seconds."""
    began = time.process_time()
    config = compose(command, [*overrides, "tracking=none", f"run.dir={folder}"])
    recipe(command).run(config)
    plan = read_json(folder / "plan.json")
    return {**read_json(folder / "result.json"), "plan": plan, "cpu": time.process_time() - began}


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval by Student's t; nan for one value."""
    from scipy.stats import t

    if len(values) < 2:
        return values[0], math.nan
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), half


def main(arguments: list[str]) -> None:
    """NAME seeds=K (or seeds=A,B,C) [overrides]."""
    name, *rest = arguments
    wanted = next((word.removeprefix("seeds=") for word in rest if word.startswith("seeds=")), "1")
    seeds = [int(seed) for seed in wanted.split(",")] if "," in wanted else list(range(int(wanted)))
    overrides = [word for word in rest if not word.startswith("seeds=")]
    file = config_dir() / "experiment" / f"{name}.yaml"
    command = command_of(file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    probe_rows.frozen_features = HeldFeatures()
    found: dict[str, list[float]] = {}
    cpu: list[float] = []
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as where:
        for seed in seeds:
            result = one_run(command, [f"experiment={name}", *overrides, f"seed={seed}"], Path(where) / str(seed))
            cpu.append(result["cpu"])
            for metric, value in result["metrics"].items():
                found.setdefault(metric, []).append(value)
            figures = " ".join(f"{metric} {value:.4f}" for metric, value in result["metrics"].items())
            print(f"seed {seed}: {figures} cpu {cpu[-1]:.1f} s", flush=True)
    print(f"\n{name} {' '.join(overrides)} sha256 {digest}")
    for metric, values in found.items():
        mean, half = interval(values)
        print(f"{metric}: {mean:.4f} +- {half:.4f} (min {min(values):.4f}, max {max(values):.4f}, n {len(values)})")
    shown = {key: result["plan"].get(key) for key in ("epsilon", "noise_multiplier", "sampling_rate", "steps")}
    print(f"{shown} cpu first {cpu[0]:.1f} s, median {statistics.median(cpu):.1f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
