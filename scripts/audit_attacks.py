"""What the reference tier's attacks find, and what its references cost: the figures of docs/results/audit.md.

    python scripts/audit_attacks.py attacks --models 18 --points 3000 --epochs 30 --out attacks.json
    python scripts/audit_attacks.py speed --model mlp --batch 32
    python scripts/audit_attacks.py speed --model cnn --batch 256

``attacks``: Fashion-MNIST, ``points`` training rows in paired halves, a multilayer perceptron without privacy; every
model is a target, attacked by the pairs that it is not in. ``speed``: CPU seconds of 16 references one by one and
stacked, one thread, the same draws.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dptrain.audit.bavaria import bavaria_n, bavaria_t
from dptrain.audit.lira import lira_offline, lira_online
from dptrain.audit.reference_store import half
from dptrain.audit.rmia import OFFSETS, rmia, rmia_published
from dptrain.audit.roc import roc_curve, tpr_at
from dptrain.audit.signals import Signals, signals, stack
from dptrain.config import OptimizerConfig
from dptrain.config_data import DataConfig
from dptrain.data.idx_images import fashion_mnist
from dptrain.data.source import Rows
from dptrain.training.losses import cross_entropy
from dptrain.training.reference_draws import reference_draws
from dptrain.training.reference_plain import Recipe, train_alone, train_stacked

FPR = 1e-3
ATTACKS = ("loss", "lira_online", "lira_offline", "rmia_published", "rmia", "bavaria_t", "bavaria_n")


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["attacks", "speed"])
    parser.add_argument("--data", default="data/fashion_mnist")
    parser.add_argument("--models", type=int, default=18)
    parser.add_argument("--points", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--model", choices=["mlp", "cnn"], default="mlp")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = attacks(given) if given.what == "attacks" else speed(given)
    if given.out:
        Path(given.out).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def read_rows(folder: str) -> tuple[Tensor, Tensor]:
    """All training images (N, 1, 28, 28) in [0, 1] and their classes (N,)."""
    rows = fashion_mnist(DataConfig(name="fashion_mnist", path=folder), 0).load().train
    return rows.inputs, rows.targets


def make(model: str, width: int, seed: int) -> nn.Module:
    """A fresh model."""
    torch.manual_seed(seed)
    if model == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))
    layers = [nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 49, 10))


def recipe_of(rows: Rows, batch: int, steps: int) -> Recipe:
    """Momentum, cosine to zero."""
    optimizer = OptimizerConfig(name="sgd", lr=0.05, schedule="cosine", options={"momentum": 0.9})
    return Recipe(rows, cross_entropy, optimizer, steps, float(batch), 4096)


def speed(given: argparse.Namespace) -> dict:
    """16 references one by one, stacked, and the gap between their weights."""
    inputs, targets = read_rows(given.data)
    rows = Rows(inputs[: given.points], targets[: given.points])
    recipe, count = recipe_of(rows, given.batch, given.steps), 16
    masks = [side for pair in range(count // 2) for side in _sides(given.seed, pair, given.points)]

    def draws(k: int) -> Iterator[Tensor]:
        members = torch.nonzero(masks[k]).flatten()
        return reference_draws(members, given.batch, given.steps, k)

    _ = train_alone(make(given.model, given.width, 0), recipe_of(rows, given.batch, 3), _first(draws(0), 3))
    _ = train_stacked([make(given.model, given.width, 0)], recipe_of(rows, given.batch, 3), [_first(draws(0), 3)])
    start = time.process_time()
    alone = [train_alone(make(given.model, given.width, k), recipe, draws(k)) for k in range(count)]
    one_by_one = time.process_time() - start
    start = time.process_time()
    together = train_stacked(
        [make(given.model, given.width, k) for k in range(count)], recipe, [*map(draws, range(count))]
    )
    stacked = time.process_time() - start
    pairs = zip(alone, together, strict=True)
    gap = max(float((a[name] - b[name]).abs().max()) for a, b in pairs for name in a)
    found = {
        "model": given.model,
        "batch": given.batch,
        "steps": given.steps,
        "cpu_one_by_one": round(one_by_one, 2),
        "cpu_stacked": round(stacked, 2),
        "share": round(stacked / one_by_one, 3),
        "way": "stacked" if stacked <= 0.95 * one_by_one else "one by one",
        "largest_gap": gap,
    }
    print(json.dumps(found))
    return found


def _first(draws: Iterator[Tensor], count: int) -> Iterator[Tensor]:
    return (draw for _, draw in zip(range(count), draws, strict=False))


def _sides(seed: int, pair: int, units: int) -> tuple[Tensor, Tensor]:
    mask = half(seed, pair, units)
    return mask, ~mask


def attacks(given: argparse.Namespace) -> dict:
    """Every attack at 1, 4 and 8 references on each side, over all models as targets."""
    inputs, targets = read_rows(given.data)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(given.seed))
    points, population = order[: given.points], order[given.points : given.points + 2000]
    rows = Rows(inputs[points], targets[points])
    steps = given.epochs * (given.points // 2) // given.batch
    recipe = recipe_of(rows, given.batch, steps)
    masks = [side for pair in range(given.models // 2) for side in _sides(given.seed, pair, given.points)]
    start = time.process_time()
    members = [torch.nonzero(mask).flatten() for mask in masks]
    draws = [reference_draws(m, given.batch, steps, given.seed * 1000 + k) for k, m in enumerate(members)]
    states = train_stacked(
        [make("mlp", given.width, given.seed * 1000 + k) for k in range(given.models)], recipe, draws
    )
    cpu = time.process_time() - start
    models = []
    for state in states:
        model = make("mlp", given.width, 0)
        model.load_state_dict(state)
        models.append(model.eval())
    heard = stack([_heard(model, rows.inputs, rows.targets) for model in models])
    wide = stack([_heard(model, inputs[population], targets[population]) for model in models])
    included = np.stack([mask.numpy() for mask in masks])
    found = {"models": given.models, "cpu_a_model": round(cpu / given.models, 3), "steps": steps, "width": given.width}
    found["accuracy"] = _accuracy(models, inputs[order[-5000:]], targets[order[-5000:]])
    print(json.dumps(found), flush=True)
    for count in (1, 4, 8):
        if 2 * count + 2 <= given.models:
            found[str(count)] = _table(heard, wide, included, count)
    return found


def _heard(model: nn.Module, inputs: Tensor, targets: Tensor) -> Signals:
    with torch.no_grad():
        outputs = model(inputs).double().numpy()
    return signals(outputs, targets.numpy(), np.arange(len(targets)), "multiclass")


def _accuracy(models: list[nn.Module], inputs: Tensor, targets: Tensor) -> float:
    with torch.no_grad():
        return float(np.mean([(m(inputs).argmax(1) == targets).float().mean().item() for m in models]))


def _scores(target: int, refs: list[int], heard: Signals, wide: Signals, included: np.ndarray) -> dict[str, np.ndarray]:
    """Every attack on one target; RMIA's a is chosen on the target's partner, whose members are known."""
    phi, log_p, inside = heard.phi[refs], heard.log_p[refs], included[refs]
    partner = target ^ 1

    def auc(a: float) -> float:
        made = rmia(heard.log_p[partner], log_p, inside, a)
        return roc_curve(made[included[partner]], made[~included[partner]]).auc

    a = max(OFFSETS, key=auc)
    ratio = rmia(heard.log_p[target], log_p, inside, a)
    nowhere = np.zeros((len(refs), wide.log_p.shape[1]), bool)
    return {
        "loss": heard.log_p[target],
        "lira_online": lira_online(heard.phi[target], phi, inside),
        "lira_offline": lira_offline(heard.phi[target], phi, inside),
        "rmia_published": rmia_published(ratio, rmia(wide.log_p[target], wide.log_p[refs], nowhere, a)),
        "rmia": ratio,
        "bavaria_t": bavaria_t(heard.phi[target], phi, inside),
        "bavaria_n": bavaria_n(heard.phi[target], phi, inside),
    }


def _table(heard: Signals, wide: Signals, included: np.ndarray, count: int) -> dict:
    """Mean TPR over targets with Student's interval over pairs, and of differences of attacks on the same targets."""
    from scipy.stats import t as student

    models = len(included)
    rates: dict[str, list[float]] = {name: [] for name in ATTACKS}
    areas: dict[str, list[float]] = {name: [] for name in ATTACKS}
    for target in range(models):
        refs = [k for k in range(models) if k // 2 != target // 2]
        turned = refs[target // 2 * 2 :] + refs[: target // 2 * 2]  # not the same references for every target
        for name, made in _scores(target, turned[: 2 * count], heard, wide, included).items():
            roc = roc_curve(made[included[target]], made[~included[target]])
            rates[name].append(tpr_at(roc, FPR))
            areas[name].append(roc.auc)

    def interval(values: np.ndarray) -> dict[str, float]:
        pairs = values.reshape(-1, 2).mean(axis=1)
        half_width = student.ppf(0.975, len(pairs) - 1) * pairs.std(ddof=1) / len(pairs) ** 0.5
        return {"mean": values.mean(), "low": pairs.mean() - half_width, "high": pairs.mean() + half_width}

    table = {}
    for name in ATTACKS:
        table[name] = {"auc": float(np.mean(areas[name])), "tpr": interval(np.array(rates[name]))}
        print(count, name, f"AUC {table[name]['auc']:.3f}", {k: round(v, 4) for k, v in table[name]["tpr"].items()})
    for ours in ("rmia", "bavaria_t"):
        for theirs in ("lira_online", "rmia_published"):
            gap = interval(np.array(rates[ours]) - np.array(rates[theirs]))
            table[f"{ours}-{theirs}"] = gap
            print(count, f"{ours} above {theirs} by", {k: round(v, 4) for k, v in gap.items()}, flush=True)
    return table


if __name__ == "__main__":
    main()
