"""How much of the perplexity gap private fine-tuning closes: public start, private and non-private run, by split.

    python scripts/language_gap.py START into=FOLDER seeds=5 [both.key=value ...] [ceiling.key=value ...]

START is the run folder of ``dptrain train experiment=dialogue_language``. For every seed (a split of its own) the
start is judged as it is on the split's public messages; then ``experiment=sms_language`` goes on from it, once at its
epsilon and once with ``privacy=off``: the same start, rate of draws and number of steps, without clipping and noise.
Keys behind ``both.`` go to both runs, keys behind ``ceiling.`` to the second alone.

Runs go to FOLDER: those that are finished there are read, one that was cut off goes on. The share closed is
(start - private) / (start - ceiling), of perplexity, and beside it of the loss in nats.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from run_experiment import interval

from dptrain.checkpoint.bundle import load_verified
from dptrain.cli import recipe
from dptrain.compose import compose, config_dir
from dptrain.registry import sources
from dptrain.run_folder import read_json
from dptrain.training.metrics import Predictions, perplexity

NAME = "sms_language"
NAMES = ("start", "private", "ceiling", "share", "share_nats")


def judged_start(start: str, overrides: list[str]) -> float:
    """Perplexity of the start on the split's public rows."""
    config = compose("finetune", overrides)
    rows = sources.build(config.data.name, config.data, config.seed, options=config.data.options).load().public
    outputs = load_verified(start).outputs(rows.inputs, config.evaluation.batch_size)
    return perplexity(Predictions("language", outputs.numpy(), rows.targets.numpy()))


def run_of(overrides: list[str], folder: Path) -> dict[str, Any]:
    """result.json of a run and its plan; a run that was cut off goes on, one that is finished is not made again."""
    held = folder / "result.json"
    if not held.is_file() or read_json(held)["status"] != "finished":
        began = time.process_time()
        config = [f"resume={folder}"] if folder.exists() else [*overrides, "tracking=none", f"run.dir={folder}"]
        recipe("finetune").run(compose("finetune", config))
        print(f"{folder.name}: {time.process_time() - began:.0f} CPU seconds", flush=True)
    return {**read_json(held), "plan": read_json(folder / "plan.json")}


def one_seed(start: str, seed: int, both: list[str], ceiling: list[str], into: Path) -> dict[str, float]:
    """Perplexities and shares of one split."""
    common = [f"experiment={NAME}", f"finetune.start={start}", f"seed={seed}", *both]
    private = run_of(common, into / f"{seed}-private")
    free = run_of([*common, "privacy=off", *ceiling], into / f"{seed}-ceiling")
    found = {
        "start": judged_start(start, common),
        "private": float(private["metrics"]["test_perplexity"]),
        "ceiling": float(free["metrics"]["test_perplexity"]),
    }
    a, b, c = (found[name] for name in NAMES[:3])
    found |= {"share": (a - b) / (a - c), "share_nats": math.log(a / b) / math.log(a / c)}
    figures = " ".join(f"{name} {value:.4f}" for name, value in found.items())
    plan = private["plan"]
    said = f"epsilon {private['epsilon']:.4f} sigma {plan['noise_multiplier']:.4f} q {plan['sampling_rate']:.4f}"
    print(f"seed {seed}: {figures} {said} steps {private['steps']}, {free['steps']}", flush=True)
    return found


def main(arguments: list[str]) -> None:
    """START into=FOLDER seeds=K (or seeds=A,B) [both.key=value] [ceiling.key=value]."""
    start, *rest = arguments
    words = dict(word.split("=", 1) for word in rest if word.startswith(("seeds=", "into=")))
    wanted = words.get("seeds", "1")
    seeds = [int(seed) for seed in wanted.split(",")] if "," in wanted else list(range(int(wanted)))
    both = [word.removeprefix("both.") for word in rest if word.startswith("both.")]
    ceiling = [word.removeprefix("ceiling.") for word in rest if word.startswith("ceiling.")]
    torch.set_num_threads(1)
    into = Path(words.get("into", "runs/language_gap"))
    into.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256((config_dir() / "experiment" / f"{NAME}.yaml").read_bytes()).hexdigest()[:16]
    print(f"{NAME} sha256 {digest} {' '.join([*both, *ceiling])}", flush=True)
    rows = [one_seed(start, seed, both, ceiling, into) for seed in seeds]
    for name in NAMES:
        values = [row[name] for row in rows]
        mean, half = interval(values)
        print(f"{name}: {mean:.4f} +- {half:.4f} (min {min(values):.4f}, max {max(values):.4f}, n {len(values)})")


if __name__ == "__main__":
    main(sys.argv[1:])
