"""The same references by ml_privacy_meter and by dptrain, one after the other on one machine: CPU seconds of each.

    git clone https://github.com/privacytrustlab/ml_privacy_meter meter
    python scripts/audit_peer.py --meter meter

The job: Fashion-MNIST, 3,000 points, paired halves, a perceptron 784-128-10, batch 32, 30 epochs, 4 references:
ml_privacy_meter trains 10 models for it, by its own ``train_models``. Its package has no entry for Fashion-MNIST: the
rows are handed over under the name of one that it knows, with their shape, and packages that this job does not use
(torchvision, transformers, peft, datasets) are stood in for where its modules import them. Each side runs in a process
of its own; what is counted is the training of 10 models, processes that load its data included, imports not.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

POINTS, EPOCHS, BATCH, REFERENCES, WIDTH = 3000, 30, 32, 4, 128
MODELS = 2 * (REFERENCES + 1)
NAME = "purchase100"
STOOD_IN = ("torchvision", "transformers", "peft", "datasets")
CONFIG = {
    "run": {"random_seed": 0, "log_dir": "log", "time_log": True, "num_experiments": 1},
    "audit": {"privacy_game": "privacy_loss_model", "algorithm": "RMIA", "num_ref_models": REFERENCES, "device": "cpu"},
    "train": {"model_name": "mlp", "device": "cpu", "batch_size": BATCH, "optimizer": "SGD", "epochs": EPOCHS},
    "data": {"dataset": NAME, "data_dir": "data"},
}
CONFIG["train"] |= {"learning_rate": 0.05, "weight_decay": 0, "momentum": 0.9}
CONFIG["audit"] |= {"report_log": "report", "batch_size": 5000, "data_size": POINTS, "population_size": 2000}


class StandIn(types.ModuleType):
    """A package of which every name is an empty class."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def cpu_seconds() -> float:
    """Of this process and of those that it waited for."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def rows(folder: str) -> Any:
    """(inputs (5000, 784), classes): 3,000 points of the job, and 2,000 of its population."""
    import torch

    from dptrain.config_data import DataConfig
    from dptrain.data.idx_images import fashion_mnist

    train = fashion_mnist(DataConfig(name="fashion_mnist", path=folder), 0).load().train
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: POINTS + 2000]
    return train.inputs[chosen].flatten(1), train.targets[chosen]


def by_meter(checkout: str, folder: str) -> dict[str, float]:
    """Its whole command, ``train_models`` timed."""
    import yaml

    for name in STOOD_IN:
        sys.modules[name] = StandIn(name)
    for name in ("transforms", "datasets", "models"):
        sys.modules[f"torchvision.{name}"] = StandIn(f"torchvision.{name}")
    inputs, targets = rows(folder)
    sys.path.insert(0, checkout)
    import dataset.tabular as tabular  # pyright: ignore[reportMissingImports]
    import models.utils as utils  # pyright: ignore[reportMissingImports]
    import run_mia  # pyright: ignore[reportMissingImports]

    utils.INPUT_OUTPUT_SHAPE[NAME] = [inputs.shape[1], 10]
    Path("data").mkdir()
    for name, part in ((NAME, slice(0, POINTS)), (f"{NAME}_population", slice(POINTS, None))):
        with Path("data", f"{name}.pkl").open("wb") as file:
            pickle.dump(tabular.TabularDataset(inputs[part].numpy(), targets[part].numpy()), file)
    Path("job.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    found: dict[str, float] = {}
    train_models = run_mia.train_models

    def timed(*given: Any) -> Any:
        gc.collect()
        before = cpu_seconds()
        made = train_models(*given)
        gc.collect()  # processes that load data end with what holds them, and count once they have
        found.update(models=len(made), cpu=round(cpu_seconds() - before, 2))
        return made

    run_mia.train_models = timed
    sys.argv = ["run_mia.py", "--cf", "job.yaml"]
    run_mia.main()
    return found


def by_dptrain(folder: str) -> dict[str, float]:
    """The same number of models, stacked."""
    import torch
    from audit_attacks import _sides, make, recipe_of

    from dptrain.data.source import Rows
    from dptrain.training.reference_draws import ReferenceDraws
    from dptrain.training.reference_plain import train_stacked

    inputs, targets = rows(folder)
    pool = Rows(inputs[:POINTS].reshape(-1, 1, 28, 28), targets[:POINTS])
    steps = EPOCHS * (POINTS // 2 // BATCH)
    before = cpu_seconds()
    masks = [side for pair in range(MODELS // 2) for side in _sides(0, pair, POINTS)]
    members = [torch.nonzero(mask).flatten() for mask in masks]
    draws = [ReferenceDraws(part, BATCH, steps, k) for k, part in enumerate(members)]
    states = train_stacked([make("mlp", WIDTH, k) for k in range(MODELS)], recipe_of(pool, BATCH, steps), draws)
    return {"models": len(states), "cpu": round(cpu_seconds() - before, 2), "steps": steps}


def main() -> int:
    """Both sides, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meter", required=True, help="checkout of ml_privacy_meter")
    parser.add_argument("--data", default="data/fashion_mnist")
    parser.add_argument("--side", choices=["meter", "dptrain"])
    given = parser.parse_args()
    meter, data = os.path.abspath(given.meter), os.path.abspath(given.data)
    if given.side is not None:
        import torch

        torch.set_num_threads(1)
        found = by_meter(meter, data) if given.side == "meter" else by_dptrain(data)
        Path("found.json").write_text(json.dumps(found), encoding="utf-8")
        return 0
    each = {}
    for side in ("dptrain", "meter"):
        with tempfile.TemporaryDirectory() as room:
            command = [sys.executable, os.path.abspath(__file__), "--meter", meter, "--data", data, "--side", side]
            path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
            with Path(room, "output.txt").open("w") as log:
                done = subprocess.run(
                    command, cwd=room, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": path}, check=False
                )
            if done.returncode:
                sys.stderr.write(Path(room, "output.txt").read_text()[-3000:])
                return done.returncode
            found = json.loads(Path(room, "found.json").read_text())
            each[side] = found["cpu"] / found["models"]
            print(f"{side}: {found}, {each[side]:.2f} CPU s a model", flush=True)
    print(f"ratio {each['meter'] / each['dptrain']:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
