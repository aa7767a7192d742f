"""What the reference tier's attacks find, and what its references cost: the figures of docs/results/audit.md.

    python scripts/audit_attacks.py attacks --models 18 --points 3000 --epochs 30 --out attacks.json
    python scripts/audit_attacks.py speed --model mlp --batch 16 32 64 256 --steps 60
    python scripts/audit_attacks.py speed --model cnn --batch 64 256 --steps 8

``attacks``: Fashion-MNIST, ``points`` training rows in paired halves, a multilayer perceptron without privacy; every
model is a target, attacked by the pairs that it is not in. ``speed``: CPU time of 16 references one by one, stacked and
compiled, by turns in one process, one thread, the same draws.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
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
from dptrain.training.reference_compiled import never_compiled, train_compiled
from dptrain.training.reference_draws import ReferenceDraws
from dptrain.training.reference_plain import Recipe, train_alone, train_stacked

FPR = 1e-3
STACK = 16
ATTACKS = ("loss", "lira_online", "lira_offline", "rmia_published", "rmia", "bavaria_t", "bavaria_n")


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["attacks", "speed"])
    parser.add_argument("--data", default="data/fashion_mnist")
    parser.add_argument("--models", type=int, default=18)
    parser.add_argument("--points", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, nargs="+", default=[32], help="of attacks, the first")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--model", choices=["mlp", "cnn"], default="mlp")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=6)
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
    """16 references by every way, by turns: a table, and the largest gap to the weights of one by one."""
    inputs, targets = read_rows(given.data)
    rows = Rows(inputs[: given.points], targets[: given.points])
    print(f"{given.model}, {STACK} models, {given.steps} steps, {given.rounds} rounds by turns, first not counted")
    print("batch | way | CPU ms a step of all models: median (lowest to highest) | share of one by one | gap")
    return {str(batch): _speed_at(given, rows, batch) for batch in given.batch}


def _speed_at(given: argparse.Namespace, rows: Rows, batch: int) -> dict:
    recipe = recipe_of(rows, batch, given.steps)
    masks = [side for pair in range(STACK // 2) for side in _sides(given.seed, pair, given.points)]
    members = [torch.nonzero(mask).flatten() for mask in masks]
    ways = {"one by one": _one_by_one, "stacked": train_stacked}
    if never_compiled(make(given.model, given.width, 0), recipe) is None:
        ways["compiled"] = train_compiled
    took: dict[str, list[float]] = {way: [] for way in ways}
    states = {}
    for _ in range(given.rounds):
        for way, train in ways.items():
            modules = [make(given.model, given.width, k) for k in range(STACK)]
            draws = [ReferenceDraws(part, batch, given.steps, k) for k, part in enumerate(members)]
            start = time.process_time()
            states[way] = train(modules, recipe, draws)
            took[way].append((time.process_time() - start) / given.steps * 1e3)
    found = {}
    for way, times in took.items():
        counted, first = np.array(times[1:]), np.array(took["one by one"][1:])
        shares = counted / first  # of the same round
        gap = max(
            float((a[k] - b[k]).abs().max()) for a, b in zip(states[way], states["one by one"], strict=True) for k in a
        )
        found[way] = {"ms": times, "share": float(np.median(shares)), "gap": gap}
        ms = f"{np.median(counted):.1f} ({counted.min():.1f} to {counted.max():.1f})"
        share = f"{np.median(shares):.2f} ({shares.min():.2f} to {shares.max():.2f})"
        print(f"{batch} | {way} | {ms} | {share} | {gap:.0e}", flush=True)
    return found


def _one_by_one(modules: Sequence[nn.Module], recipe: Recipe, draws: Sequence[Iterator[Tensor]]) -> list:
    return [train_alone(module, recipe, own) for module, own in zip(modules, draws, strict=True)]


def _sides(seed: int, pair: int, units: int) -> tuple[Tensor, Tensor]:
    mask = half(seed, pair, units)
    return mask, ~mask


def attacks(given: argparse.Namespace) -> dict:
    """Every attack at 1, 4 and 8 references on each side, over all models as targets."""
    inputs, targets = read_rows(given.data)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(given.seed))
    points, population = order[: given.points], order[given.points : given.points + 2000]
    rows = Rows(inputs[points], targets[points])
    batch = given.batch[0]
    steps = given.epochs * (given.points // 2) // batch
    recipe = recipe_of(rows, batch, steps)
    masks = [side for pair in range(given.models // 2) for side in _sides(given.seed, pair, given.points)]
    start = time.process_time()
    members = [torch.nonzero(mask).flatten() for mask in masks]
    draws = [ReferenceDraws(m, batch, steps, given.seed * 1000 + k) for k, m in enumerate(members)]
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
