"""Every engine against float64 autograd on the cases of scripts/check_engines.py; and what engines refuse."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dptrain.data.batches import PhysicalBatch
from dptrain.errors import ConfigError
from dptrain.gradients.plain import plain_sum
from dptrain.gradients.protocol import ClippingRule, Engine, EngineSettings
from dptrain.registry import engines


def _script() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "check_engines.py"
    spec = importlib.util.spec_from_file_location("check_engines", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_engines"] = module
    spec.loader.exec_module(module)
    return module


check = _script()
CPU = torch.device("cpu")
ENGINES = ["vmap", "opacus_hooks", "loop", "bookkeeping"]
OF_RECORDS = [*ENGINES, "opacus_ghost"]
"""Besides, the engine that clips units of one row only; see test_gradients_opacus.py."""
EXACT = ClippingRule(1.0, 2.0**-24)
WIDE = ClippingRule(1e6, None)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def batch_of(inputs: Tensor, unit: list[int] | None = None, weight: list[float] | None = None) -> PhysicalBatch:
    size = len(inputs)
    slots = torch.tensor(unit) if unit is not None else torch.arange(size)
    return PhysicalBatch(
        inputs, torch.arange(size) % 3, slots, torch.tensor(weight) if weight is not None else torch.ones(size)
    )


def run(engine: Engine, batch: PhysicalBatch, module: nn.Module) -> Tensor:
    total = torch.zeros(sum(p.numel() for p in module.parameters() if p.requires_grad), dtype=torch.float64)
    engine.add_clipped_sum(batch, total)
    return total


def build(name: str, module: nn.Module, rule: ClippingRule = EXACT, autocast: torch.dtype | None = None) -> Engine:
    return engines.build(name, module, cross_entropy, rule, EngineSettings(autocast))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("packing", ["records", "users"])
@pytest.mark.parametrize("model", list(check.MODELS))
def test_clipped_sums_are_exact_and_bounded_on_adversarial_rows(engine: str, model: str, packing: str) -> None:
    """Float32: contribution and change at most C (1 + s), error to float64 at most C s / 10, per unit."""
    if engine == "opacus_hooks" and "tied" in model:
        pytest.skip("refused; see test_opacus_refuses_what_it_cannot_prove")
    worst = check.Worst()
    for case in check.cases(1):
        if case.model == model and case.packing == packing:
            worst = worst.or_worse(check.measure(engine, case, None, CPU))
    assert 0 < worst.contribution <= 1 + check.SLACK
    assert 0 < worst.change <= 1 + check.SLACK
    assert worst.error <= check.SLACK / 10
    assert worst.coupling <= check.SLACK / 1000


@pytest.mark.parametrize("engine", ENGINES)
def test_bfloat16_is_bounded_though_not_exact(engine: str) -> None:
    for packing in ("records", "users"):
        for hazard in check.HAZARDS:
            worst = check.measure(engine, check.Case("mlp", packing, hazard), torch.bfloat16, CPU)
            assert 0 < worst.contribution <= 1 + check.SLACK and 0 < worst.change <= 1 + check.SLACK
            assert worst.coupling <= check.SLACK / 1000


@pytest.mark.parametrize("engine", ENGINES)
def test_a_poisoned_row_silences_its_unit_and_no_other(engine: str) -> None:
    module = nn.Linear(4, 3)
    inputs = torch.randn(6, 4)
    inputs[1], inputs[5] = float("nan"), float("inf")
    batch = batch_of(inputs, [0, 0, 1, 2, 3, 4], [0.5, 0.5, 1, 1, 1, 0])
    clean = batch_of(inputs.nan_to_num(0.0, 0.0), [0, 0, 1, 2, 3, 4], [0, 0, 1, 1, 1, 0])
    got, expected = run(build(engine, module), batch, module), run(build(engine, module), clean, module)
    if engine == "bookkeeping":  # of the measured class: sums of other shapes round otherwise
        assert float((got - expected).norm()) <= 1e-6 * float(expected.norm())
    else:
        assert torch.equal(got, expected)


@pytest.mark.parametrize("engine", OF_RECORDS)
def test_a_batch_of_padding_adds_nothing_and_is_measured(engine: str) -> None:
    module = nn.Linear(4, 3)
    total = torch.zeros(15, dtype=torch.float64)
    stats = build(engine, module).add_clipped_sum(batch_of(torch.zeros(5, 4), weight=[0.0] * 5), total)
    assert not total.any() and not stats.norms.any()
    assert stats.losses.shape == (5,) and stats.losses.dtype == torch.float32
    assert stats.norms.shape == (5,) and stats.norms.dtype == torch.float64


@pytest.mark.parametrize("engine", ENGINES)
def test_statistics_are_those_of_rows_and_slots(engine: str) -> None:
    module, inputs = nn.Linear(4, 3), torch.randn(4, 4)
    total = torch.zeros(15, dtype=torch.float64)
    batch = batch_of(inputs, [0, 0, 3, 1], [0.5, 0.5, 1.0, 0.0])
    stats = build(engine, module, WIDE).add_clipped_sum(batch, total)
    assert torch.allclose(stats.losses, cross_entropy(module(inputs), batch.targets).detach(), rtol=1e-5)
    alone = run(build(engine, module, WIDE), batch_of(inputs, [0, 0, 3, 1], [0.5, 0.5, 0.0, 0.0]), module)
    assert float(stats.norms[0]) == pytest.approx(float(alone.norm()), rel=1e-6)
    assert float(stats.norms[1]) == 0.0 and float(stats.norms[2]) == 0.0 and float(stats.norms[3]) > 0.0


@pytest.mark.parametrize("engine", OF_RECORDS)
def test_the_module_is_left_as_it_was(engine: str) -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    keys, flags = list(module.state_dict()), {k: v.clone() for k, v in module.state_dict().items()}
    built = build(engine, module)
    run(built, batch_of(torch.randn(4, 4)), module)
    assert list(module.state_dict()) == keys
    assert all(torch.equal(module.state_dict()[k], v) for k, v in flags.items())
    assert all(p.grad is None and not hasattr(p, "grad_sample") for p in module.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in module.modules())
    assert module(torch.zeros(1, 4)).shape == (1, 3)


@pytest.mark.parametrize("engine", OF_RECORDS)
def test_an_engine_follows_the_module_through_steps(engine: str) -> None:
    """After an optimizer step, and a change of mode, the engine sees the new weights and the new mode."""
    module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).eval()
    module.train(engine.startswith("opacus"))  # Opacus' hooks see layers in training mode only
    module[1].eval()
    built, batch = build(engine, module), batch_of(torch.randn(4, 4))
    before = run(built, batch, module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.5)
    after = run(built, batch, module)
    assert not torch.equal(before, after)
    assert torch.equal(after, run(build(engine, module), batch, module))
    module.train()
    assert not torch.equal(run(built, batch, module), run(built, batch, module))  # dropout is random now


def test_vmap_gives_each_row_its_own_dropout() -> None:
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 3))
    batch = PhysicalBatch(torch.ones(8, 64), torch.zeros(8, dtype=torch.int64), torch.arange(8), torch.ones(8))
    total = torch.zeros(195, dtype=torch.float64)
    norms = build("vmap", module).add_clipped_sum(batch, total).norms
    assert len(norms.unique()) > 4


class _Keeper(nn.Module):
    """Writes what it sees into a buffer: private rows would reach the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.get_buffer("seen").add_(x.detach().sum(0, keepdim=True))
        return self.out(x)


@pytest.mark.parametrize("engine", OF_RECORDS)
def test_no_engine_lets_a_buffer_keep_what_it_saw(engine: str) -> None:
    module = _Keeper()
    batch = batch_of(torch.randn(4, 4))
    if engine in ("vmap", "bookkeeping"):  # cannot write rows into a buffer that all rows share
        with pytest.raises((ConfigError, RuntimeError)):
            run(build(engine, module), batch, module)
    else:
        run(build(engine, module), batch, module)
    assert not module.get_buffer("seen").any()


class _Positions(nn.Module):
    """A table of positions: its hook's rows are positions, and each holds every unit."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, :, None] * self.table(torch.arange(6))[None]).sum(1)


class _Mixing(nn.Module):
    """Subtracts the batch's mean: rows meet."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.out(x)
        return y - y.mean(0)


class _Borrowed(nn.Module):
    """Uses a layer's weight behind the layer's back."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(torch.tanh(self.out(x)), self.out.weight)[:, :3]


@pytest.mark.parametrize("rows", [6, 8])
@pytest.mark.parametrize("module", [_Positions(), _Mixing(), _Borrowed(), check.Pooled(tied=True)])
def test_opacus_refuses_what_it_cannot_prove(module: nn.Module, rows: int) -> None:
    inputs = torch.randn(rows, 6) if not isinstance(module, check.Pooled) else torch.randint(0, 10, (rows, 5))
    with pytest.raises(ConfigError, match=r"clipping.engine=opacus_hooks.*clipping.engine=vmap"):
        run(build("opacus_hooks", module), batch_of(inputs), module)


@pytest.mark.parametrize("module", [_Positions(), _Borrowed()])
def test_vmap_runs_what_opacus_refuses(module: nn.Module) -> None:
    batch = batch_of(torch.randn(6, 6))
    loop = run(build("loop", module, WIDE), batch, module)
    assert torch.allclose(run(build("vmap", module, WIDE), batch, module), loop, atol=1e-5)


class _Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x) if x.sum() > 0 else -self.out(x)


def test_layers_an_engine_cannot_follow_are_refused_in_one_line() -> None:
    norm = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    images = batch_of(torch.randn(4, 1, 4, 4))
    with pytest.raises(ConfigError, match=r"clipping.engine=opacus_hooks: layer 1 \(BatchNorm2d\)"):
        build("opacus_hooks", norm)
    with pytest.raises(ConfigError, match=r"clipping.engine=vmap.*set clipping.engine=opacus_hooks or"):
        run(build("vmap", norm), images, norm)
    with pytest.raises(ConfigError, match=r"clipping.engine=vmap") as caught:
        run(build("vmap", _Branching()), batch_of(torch.randn(4, 4)), _Branching())
    assert "\n" not in str(caught.value)


def test_gradient_checkpointing_is_refused_by_vmap_in_one_line() -> None:
    class Checkpointed(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return checkpoint(super().forward, input, use_reentrant=False)

    module = Checkpointed(4, 3)
    with pytest.raises(ConfigError, match="cannot be run row by row"):
        run(build("vmap", module), batch_of(torch.randn(6, 4)), module)


def test_other_failures_keep_their_own_error() -> None:
    module = nn.Linear(5, 3)
    with pytest.raises(RuntimeError, match="mat"):
        run(build("vmap", module), batch_of(torch.randn(4, 4)), module)


def test_a_layer_used_twice_is_counted_twice_by_every_engine() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.tanh(self.inner(torch.tanh(self.inner(x)))))

    torch.manual_seed(0)
    module, batch = Twice(), batch_of(torch.randn(5, 4))
    sums = [run(build(name, module, WIDE), batch, module) for name in ENGINES]
    assert torch.allclose(sums[0], sums[2], atol=1e-5) and torch.allclose(sums[1], sums[2], atol=1e-5)


def test_plain_sum_is_the_weighted_gradient_and_ignores_padding() -> None:
    module, inputs = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), torch.randn(5, 4)
    batch = batch_of(
        torch.cat([inputs, torch.full((2, 4), float("nan"))]), [0, 0, 1, 2, 3, 5, 6], [0.5, 0.5, 1, 1, 1, 0, 0]
    )
    total = torch.zeros(sum(p.numel() for p in module.parameters()), dtype=torch.float64)
    losses = plain_sum(module, cross_entropy, batch, total, None)
    assert losses.shape == (5,) and all(p.grad is None for p in module.parameters())
    (cross_entropy(module(inputs), batch.targets[:5]) * batch.weight[:5]).sum().backward()
    expected = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    assert torch.allclose(total.float(), expected, atol=1e-5)
    empty = PhysicalBatch(inputs, batch.targets[:5], batch.unit[:5], torch.zeros(5))
    assert plain_sum(module, cross_entropy, empty, total, None).shape == (0,)


def test_auto_is_bookkeeping_and_opacus_is_imported_on_demand_only() -> None:
    assert build("auto", nn.Linear(4, 3)).name == "bookkeeping"
    code = (
        "import sys, torch; from dptrain.registry import engines;"
        "from dptrain.gradients.protocol import ClippingRule, EngineSettings;"
        "engines.build('auto', torch.nn.Linear(2, 2), None, ClippingRule(1.0, None), EngineSettings());"
        "sys.exit('opacus' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
