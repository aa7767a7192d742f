"""Recomputation: by hand on a linear model, harmless to its module, and deaf to no known mistake of an engine."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dptrain.data.batches import PhysicalBatch
from dptrain.gradients.protocol import ClippingRule, EngineSettings, UnitStats
from dptrain.gradients.recompute import recompute, unit_gradients
from dptrain.registry import engines


def value(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs[:, 0] * targets


def batch_of(inputs: Tensor, unit: list[int], weight: list[float]) -> PhysicalBatch:
    return PhysicalBatch(inputs, torch.ones(len(inputs)), torch.tensor(unit), torch.tensor(weight))


def test_a_linear_unit_is_its_weighted_row() -> None:
    module = nn.Linear(3, 1, bias=False)
    inputs = torch.tensor([[3.0, 0, 4], [1, 1, 0], [0, 1, 1], [float("nan")] * 3])
    batch = batch_of(inputs, [0, 1, 1, 3], [1, 0.5, 0.5, 0])
    found = recompute(module, value, batch, torch.tensor([0, 1, 2]), 1.0)
    assert torch.allclose(found.norms, torch.tensor([5.0, 1.5**0.5, 0.0], dtype=torch.float64))
    expected = torch.tensor([0.6, 0, 0.8]).double() + torch.tensor([0.5, 1, 0.5]).double() / 1.5**0.5
    assert torch.allclose(found.clipped_sum, expected, atol=1e-12)


def test_a_unit_that_is_not_finite_adds_nothing() -> None:
    module = nn.Linear(2, 1)
    batch = batch_of(torch.tensor([[float("inf"), 0.0], [3.0, 4.0]]), [0, 1], [1, 1])
    found = recompute(module, value, batch, torch.tensor([0, 1]), 1e9)
    assert not found.norms[0].isfinite()
    assert torch.equal(found.clipped_sum, torch.tensor([3.0, 4.0, 1.0]).double())


def test_the_module_and_the_generators_stay_as_they_were() -> None:
    first, tied, norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)
    tied.weight = first.weight
    module = nn.Sequential(first, nn.Dropout(0.5), nn.Linear(4, 4), norm, tied).train()
    norm.eval()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    modes = [m.training for m in module.modules()]
    random = torch.random.get_rng_state()
    batch = PhysicalBatch(torch.randn(3, 4), torch.tensor([0, 1, 2]), torch.arange(3), torch.ones(3))
    torch.random.set_rng_state(random)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    (one, *_) = unit_gradients(module, loss, batch, torch.arange(3))
    assert one.shape == (sum(p.numel() for p in module.parameters()),)
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())
    assert modes == [m.training for m in module.modules()]
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("engine", ["bookkeeping", "vmap", "loop"])
def test_engines_agree_and_their_known_mistakes_do_not(engine: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    batch = batch_of(torch.randn(5, 6), [0, 0, 2, 3, 4], [0.5, 0.5, 1, 1, 1])
    units, size = torch.tensor([0, 2, 3, 4]), sum(p.numel() for p in module.parameters())
    found = recompute(module, value, batch, units, 0.5)

    def step(norm: float) -> tuple[Tensor, UnitStats]:
        built = engines.build(engine, module, value, ClippingRule(norm, None), EngineSettings())
        total = torch.zeros(size, dtype=torch.float64)
        return total, built.add_clipped_sum(batch, total)

    def off(total: Tensor) -> float:
        return float((total - found.clipped_sum).norm()) / 0.5

    total, stats = step(0.5)
    assert off(total) < 1e-5
    assert torch.allclose(stats.norms[units], found.norms, rtol=1e-6)
    assert off(step(0.55)[0]) > 0.05  # clipped at 1.1 C
    assert off(total / 4) > 0.05  # averaged
