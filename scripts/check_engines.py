"""How exact every clipping engine is, on inputs made to hurt it. Prints the table of docs/results/engine_exactness.md.

    python scripts/check_engines.py [--device cuda] [--seeds 2] [--engines bookkeeping vmap] [--further]
    python scripts/check_engines.py --crowds [--device cuda]

Every case is a model, a packing (records, or users with several rows) and a kind of adversarial rows. Per engine and
dtype the worst case is shown of
  contribution   norm of what one unit adds, over C                                    must be <= 1 + s
  change         norm by which a draw's sum moves when a unit leaves it and the others
                 are packed anew, over C                                               must be <= 1 + s
  coupling       how far another unit's contribution moves when a unit leaves, over C  (measured without the grid)
  error          distance of one unit's contribution from one-row-at-a-time float64 autograd, over C
                 (without the grid, units whose float32 gradient is finite)            float32: must be <= s / 10

With --further, larger models, and rows whose tokens cancel. With --crowds, batches of many rows instead, all alike or
each its own, without the grid:
  change         as above, when the first of all units leaves                          must be <= 1 + s
  moved          how far the sum of all others moves when it leaves, over C            must be <= s / 10
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


class Signed(nn.Module):
    """One layer on every token or place, added up by weights that the row brings as its last channel."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Linear):
            return (self.layer(x[..., :-1]) * x[..., -1:]).sum(1)
        places = self.layer(x[:, :-1])
        return (places * x[:, -1:, : places.shape[2], : places.shape[3]]).sum((2, 3))


class Encoder(nn.Module):
    """A transformer's layer, or a recurrent one, on tokens of real numbers; their mean; outputs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.out = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        states = self.layer(x)
        return self.out((states[0] if isinstance(states, tuple) else states).mean(1))


FURTHER: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "tokens": (lambda: Signed(nn.Linear(8, 10)), (33, 9), "slope"),
    "tokens, T=1024": (lambda: Signed(nn.Linear(8, 10)), (1024, 9), "slope"),
    "places": (lambda: Signed(nn.Conv2d(2, 10, 3)), (3, 8, 8), "slope"),
    "transformer": (
        lambda: Encoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, norm_first=True, batch_first=True)),
        (16, 8),
        "multiclass",
    ),
    "transformer, T=256": (
        lambda: Encoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, norm_first=True, batch_first=True)),
        (256, 8),
        "multiclass",
    ),
    "LSTM": (lambda: Encoder(nn.LSTM(8, 8, batch_first=True)), (12, 8), "multiclass"),
}
"""Left out of the test suite, which runs every engine on ``MODELS``."""

CANCEL = {"cancel 1e2": 1e2, "cancel 1e4": 1e4, "cancel 1e6": 1e6}
"""Hazards of ``Signed`` models: tokens all alike, by weights of this size and alternating sign, which add up to 1."""

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
    if task == "slope":  # gradients of outputs that float32 activations cannot spoil
        return lambda outputs, targets: (outputs * torch.linspace(-1.0, 1.0, 10).to(outputs)).sum(1)
    if task == "regression":
        return lambda outputs, targets: (outputs.squeeze(-1) - targets).square()
    return lambda outputs, targets: nn.functional.cross_entropy(outputs, targets, reduction="none")


def rows_of(case: Case) -> Rows:
    """The case's rows; the hazard sits in rows 0 and 6."""
    _, shape, task = (MODELS | FURTHER)[case.model]
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
    if case.hazard in CANCEL:
        for row in (0, 6):
            _cancel(inputs[row], shape, CANCEL[case.hazard])
    if case.hazard == "identical":
        inputs[:], targets[:] = inputs[1].clone(), targets[1].clone()
    if task == "regression":
        return Rows(inputs, targets.float(), torch.tensor(UNITS[case.packing]))
    return Rows(inputs, targets, torch.tensor(UNITS[case.packing]))


def _cancel(row: Tensor, shape: tuple[int, ...], size: float) -> None:
    """Makes one row's tokens (T, d + 1) or places (C + 1, H, W) alike, with weights that all but cancel."""
    if len(shape) == 2:
        row[:] = row[0].clone()
        weights = row[:, -1]
    else:
        row[:] = row[:, :1, :1].clone()
        weights = row[-1, : shape[1] - 2, : shape[2] - 2]
    signs = torch.where(torch.arange(weights.numel()) % 2 == 0, size, -size)
    signs[-1] += 1.0 - signs.sum()
    weights.copy_(signs.view(weights.shape))


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
    build, _, task = (MODELS | FURTHER)[case.model]
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


def cases(seeds: int, further: bool = False, cancel: bool = False) -> Iterator[Case]:
    """Every case; hazards of real numbers are left out for models that read tokens.

    Args:
        seeds: how many of each.
        further: of ``FURTHER``, not of ``MODELS``.
        cancel: the hazards ``CANCEL``, for the models that have them, not ``HAZARDS``.
    """
    for seed in range(seeds):
        for model, (_, _, task) in (FURTHER if further else MODELS).items():
            for packing in UNITS:
                for hazard in CANCEL if cancel else HAZARDS:
                    if cancel and task != "slope":
                        continue
                    if task != "tokens" or hazard in ("ordinary", "identical", "at the norm"):
                        yield Case(model, packing, hazard, seed)


CROWDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(64, 10), (64,)),
    "mlp": (lambda: nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10)), (64,)),
    "tokens": (lambda: nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Flatten(), nn.Linear(2048, 10)), (64, 16)),
    "conv": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Tanh(), nn.Flatten(), nn.Linear(288, 10)),
        (3, 8, 8),
    ),
    "embedding, tied": (lambda: Pooled(tied=True), (5,)),
}


def crowd(engine: str, model: str, size: int, alike: bool, autocast: torch.dtype | None, device: torch.device) -> Worst:
    """``change`` and, as ``coupling``, the movement of all others together, in one batch of ``size`` rows."""
    torch.manual_seed(0)
    build, shape = CROWDS[model]
    module = build().to(device)
    inputs = torch.randint(0, 10, (size, *shape)) if len(shape) == 1 and shape[0] == 5 else torch.randn(size, *shape)
    targets = torch.randint(0, 10, (size,))
    if alike:
        inputs[:], targets[:] = inputs[0].clone(), targets[0].clone()
    rows = Rows(inputs, targets, torch.arange(size))
    clip = 1e-3
    rule = ClippingRule(clip, None)
    built = engines.build(engine, module, row_loss("multiclass"), rule, EngineSettings(autocast))
    count = sum(p.numel() for p in trainable(module).values())

    def total(draw: list[int]) -> Tensor:
        return clipped_sum(built, count, next(physical_batches(
            torch.tensor(draw), rows, UnitIndex(rows.unit_id), size, device
        )))[0]  # fmt: skip

    every, rest, one = total(list(range(size))), total(list(range(1, size))), total([0])
    return Worst(change=float((every - rest).norm()) / clip, coupling=float((every - rest - one).norm()) / clip)


def print_crowds(device: torch.device) -> None:
    """The table of large physical batches."""
    print("|engine|dtype|rows|change, alike|moved, alike|change, apart|moved, apart|most moved in|")
    print("|---|---|---|---|---|---|---|---|")
    for engine in ("bookkeeping", "vmap"):
        for dtype in (None, torch.bfloat16):
            for size in (512, 4096):
                found: dict[bool, Worst] = {True: Worst(), False: Worst()}
                where = ""
                for model in CROWDS:
                    for alike in (True, False):
                        try:
                            one = crowd(engine, model, size, alike, dtype, device)
                        except ConfigError:
                            continue
                        if one.coupling > max(w.coupling for w in found.values()):
                            where = f"{model}, {'alike' if alike else 'apart'}"
                        found[alike] = found[alike].or_worse(one)
                name = "float32" if dtype is None else "bfloat16 autocast"
                shown = "|".join(f"1 {w.change - 1:+.1e}|{w.coupling:.1e}" for w in (found[True], found[False]))
                print(f"|{engine}|{name}|{size}|{shown}|{where}|", flush=True)


def print_cases(names: list[str], chosen: list[Case], device: torch.device) -> None:
    """The table of small adversarial batches."""
    print("|engine|dtype|cases|contribution|change|coupling|error|worst error in|refused|")
    print("|---|---|---|---|---|---|---|---|---|")
    for engine in names:
        for dtype in (None, torch.bfloat16):
            worst, count, where, refused = Worst(), 0, "", set[str]()
            for case in chosen:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--engines", nargs="+", default=["bookkeeping", "vmap", "opacus_hooks", "opacus_ghost", "loop"])
    parser.add_argument("--further", action="store_true")
    parser.add_argument("--crowds", action="store_true")
    given = parser.parse_args()
    device = torch.device(given.device)
    torch.set_num_threads(1)
    print(f"device {device}, {platform.machine()}, torch {torch.__version__}, slack s = {SLACK}, seeds {given.seeds}\n")
    if given.crowds:
        print_crowds(device)
        return
    if not given.further:
        print_cases(given.engines, list(cases(given.seeds)), device)
        return
    print_cases(given.engines, list(cases(given.seeds, further=True)), device)
    print("\nTokens and places that cancel: errors of float32 itself, the same one row at a time\n")
    print_cases(given.engines, list(cases(given.seeds, further=True, cancel=True)), device)


if __name__ == "__main__":
    main()
