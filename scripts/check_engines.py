"""How exact every clipping engine is, on inputs made to hurt it. Prints the table of docs/results/engine_exactness.md.

    python scripts/check_engines.py [--device cuda] [--seeds 2]

Every case is a model, a packing (records, or users with several rows) and a kind of adversarial rows. Per engine and
dtype the worst case is shown of
  contribution   norm of what one unit adds, over C                                    must be <= 1 + s
  change         norm by which a draw's sum moves when a unit leaves it and the others
                 are packed anew, over C                                               must be <= 1 + s
  coupling       how far another unit's contribution moves when a unit leaves, over C  (measured without the grid)
  error          distance of one unit's contribution from one-row-at-a-time float64 autograd, over C
                 (without the grid, units whose float32 gradient is finite)            float32: must be <= s / 10
"""

from __future__ import annotations

import argparse
import copy
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dptrain.data.batches import PhysicalBatch, UnitIndex, physical_batches
from dptrain.data.source import Rows
from dptrain.errors import ConfigError
from dptrain.gradients.protocol import ClippingRule, Engine, EngineSettings, RowLoss, trainable
from dptrain.privacy.grid import grid_step
from dptrain.registry import engines

SLACK = 1e-3
NUM_ROWS = 12
UNITS = {"records": list(range(NUM_ROWS)), "users": [0, 0, 0, 1, 2, 2, 2, 2, 3, 3, 4, 5]}
BATCH = NUM_ROWS + 4


class Pooled(nn.Module):
    """Embedding, mean over tokens, layer norm, output; the output shares the embedding's weight when tied."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 6)
        self.norm = nn.LayerNorm(6)
        self.out = nn.Linear(6, 10, bias=False)
        if tied:
            self.out.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.norm(self.table(tokens).mean(1)))


def _frozen() -> nn.Module:
    module = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 10))
    module[0].requires_grad_(False)
    return module


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "linear": (lambda: nn.Linear(20, 10), (20,), "multiclass"),
    "linear, no bias, mse": (lambda: nn.Linear(20, 1, bias=False), (20,), "regression"),
    "mlp": (lambda: nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 10)), (20,), "multiclass"),
    "mlp, first layer frozen": (_frozen, (20,), "multiclass"),
    "conv, groups, stride, norms": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 8, 3, stride=2, padding=1, bias=False),
            nn.GroupNorm(2, 8),
            nn.Tanh(),
            nn.Conv2d(8, 8, 3, groups=4, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.LayerNorm(128),
            nn.Linear(128, 10),
        ),
        (2, 8, 8),
        "multiclass",
    ),
    "embedding": (lambda: Pooled(tied=False), (5,), "tokens"),
    "embedding, tied": (lambda: Pooled(tied=True), (5,), "tokens"),
}

HAZARDS = ["ordinary", "huge", "tiny", "infinite", "nan", "one dominates", "identical", "at the norm"]


@dataclass(frozen=True)
class Case:
    """One thing to measure."""

    model: str
    packing: str
    hazard: str
    seed: int = 0


@dataclass(frozen=True)
class Worst:
    """The four quantities of the module's docstring, relative to C."""

    contribution: float = 0.0
    change: float = 0.0
    coupling: float = 0.0
    error: float = 0.0

    def or_worse(self, other: Worst) -> Worst:
        return Worst(*(max(a, b) for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def row_loss(task: str) -> RowLoss:
    if task == "regression":
        return lambda outputs, targets: (outputs.squeeze(-1) - targets).square()
    return lambda outputs, targets: nn.functional.cross_entropy(outputs, targets, reduction="none")


def rows_of(case: Case) -> Rows:
    """The case's rows; the hazard sits in rows 0 and 6."""
    _, shape, task = MODELS[case.model]
    generator = torch.Generator().manual_seed(case.seed)
    targets = torch.randint(0, 10, (NUM_ROWS,), generator=generator)
    if task == "tokens":
        inputs = torch.randint(0, 10, (NUM_ROWS, *shape), generator=generator)
    else:
        inputs = torch.randn(NUM_ROWS, *shape, generator=generator)
        scale = {"huge": 1e30, "tiny": 1e-30, "one dominates": 1e6}.get(case.hazard, 1.0)
        inputs[[0, 6]] *= scale
        if case.hazard in ("infinite", "nan"):
            inputs.view(NUM_ROWS, -1)[[0, 6], 3] = float("inf") if case.hazard == "infinite" else float("nan")
    if case.hazard == "identical":
        inputs[:], targets[:] = inputs[1].clone(), targets[1].clone()
    if task == "regression":
        return Rows(inputs, targets.float(), torch.tensor(UNITS[case.packing]))
    return Rows(inputs, targets, torch.tensor(UNITS[case.packing]))


def layout(rows: Rows, draw: list[int], device: torch.device) -> PhysicalBatch:
    """The one physical batch that holds these units."""
    return next(physical_batches(torch.tensor(draw), rows, UnitIndex(rows.unit_id), BATCH, device))


def clipped_sum(engine: Engine, size: int, batch: PhysicalBatch) -> tuple[Tensor, Tensor]:
    """The clipped sum of one batch (size,), in grid steps where the engine has a grid, and the slots' norms (R,)."""
    total = torch.zeros(size, dtype=torch.float64, device=batch.weight.device)
    return total, engine.add_clipped_sum(batch, total).norms


def measure(
    engine: str, case: Case, autocast: torch.dtype | None, device: torch.device, thorough: bool = False
) -> Worst:
    """The worst of one case, over the units that the hazard sits in and one beside them; thorough: over every unit."""
    build, _, task = MODELS[case.model]
    torch.manual_seed(case.seed)
    module, loss, rows = build().to(device), row_loss(task), rows_of(case)
    size = sum(p.numel() for p in trainable(module).values())
    units = list(range(rows.num_units))

    def total(built: Engine, draw: list[int]) -> Tensor:
        return clipped_sum(built, size, layout(rows, draw, device))[0]

    settings = EngineSettings(autocast)
    probe = engines.build(engine, module, loss, ClippingRule(1.0, None), settings)
    norms = clipped_sum(probe, size, layout(rows, units, device))[1]
    clip = float(norms[1]) * (1 - 1e-7) if case.hazard == "at the norm" else 1.0
    grid = grid_step(clip, SLACK, size)
    wide = engines.build(engine, module, loss, ClippingRule(clip, None), settings)
    exact = engines.build(engine, module, loss, ClippingRule(clip, grid), settings)
    reference = engines.build("loop", copy.deepcopy(module).double(), loss, ClippingRule(clip, None), EngineSettings())
    precise = replace(
        rows,
        inputs=rows.inputs if task == "tokens" else rows.inputs.double(),
        targets=rows.targets.double() if task == "regression" else rows.targets,
    )
    worst, all_exact, all_wide = Worst(), total(exact, units), total(wide, units)
    for unit in units if thorough else sorted({int(rows.unit_id[row]) for row in (0, 3, 6)}):
        others = [u for u in units if u != unit]
        alone = total(wide, [unit])
        error = torch.zeros(())
        if bool(norms[unit].isfinite()):
            error = (alone - clipped_sum(reference, size, layout(precise, [unit], device))[0]).norm()
        found = Worst(
            contribution=float(total(exact, [unit]).norm()) * grid / clip,
            change=float((all_exact - total(exact, others)).norm()) * grid / clip,
            coupling=float((all_wide - total(wide, others) - alone).norm()) / len(others) / clip,
            error=float(error) / clip,
        )
        worst = worst.or_worse(found)
    return worst


def cases(seeds: int) -> Iterator[Case]:
    """Every case; hazards of real numbers are left out for models that read tokens."""
    for seed in range(seeds):
        for model, (_, _, task) in MODELS.items():
            for packing in UNITS:
                for hazard in HAZARDS:
                    if task != "tokens" or hazard in ("ordinary", "identical", "at the norm"):
                        yield Case(model, packing, hazard, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    device = torch.device(given.device)
    torch.set_num_threads(1)
    print(f"device {device}, {platform.machine()}, torch {torch.__version__}, slack s = {SLACK}, seeds {given.seeds}\n")
    print("|engine|dtype|cases|contribution|change|coupling|error|worst error in|refused|")
    print("|---|---|---|---|---|---|---|---|---|")
    for engine in ("bookkeeping", "vmap", "opacus", "loop"):
        for dtype in (None, torch.bfloat16):
            worst, count, where, refused = Worst(), 0, "", set[str]()
            for case in cases(given.seeds):
                try:
                    found = measure(engine, case, dtype, device, thorough=True)
                except ConfigError:
                    refused.add(case.model)
                    continue
                if found.error >= worst.error:
                    where = f"{case.model}, {case.packing}, {case.hazard}"
                worst, count = worst.or_worse(found), count + 1
            name = "float32" if dtype is None else "bfloat16 autocast"
            values = f"1 {worst.contribution - 1:+.1e}|1 {worst.change - 1:+.1e}|{worst.coupling:.1e}|{worst.error:.1e}"
            print(f"|{engine}|{name}|{count}|{values}|{where}|{'; '.join(sorted(refused))}|", flush=True)


if __name__ == "__main__":
    main()
