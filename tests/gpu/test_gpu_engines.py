"""The numerical core on a CUDA device: same bounds as on the CPU, same exact sums."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dptrain.data.batches import UnitIndex, physical_batches
from dptrain.data.source import Rows
from dptrain.gradients.protocol import ClippingRule, EngineSettings
from dptrain.keystream import Keystream
from dptrain.noise.fast import FastNoise
from dptrain.privacy.grid import grid_step
from dptrain.registry import engines

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

NORM, SLACK = 1.0, 1e-3


def sums(engine: str, device: str, grid: bool, skip: int | None = None) -> torch.Tensor:
    """Clipped sum of 20 users of 3 rows each, less one, in the gradient's own unit."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(288, 10))
    rows = Rows(torch.randn(60, 1, 8, 8), torch.arange(60) % 10, torch.arange(60) // 3)
    module.to(device)
    size = sum(p.numel() for p in module.parameters())
    step = grid_step(NORM, SLACK, size) if grid else None
    total = torch.zeros(size, dtype=torch.float64, device=device)

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    built = engines.build(engine, module, loss, ClippingRule(NORM, step), EngineSettings())
    draw = torch.tensor([u for u in range(20) if u != skip])
    for batch in physical_batches(draw, rows, UnitIndex(rows.unit_id), 16, torch.device(device)):
        built.add_clipped_sum(batch, total)
    return total.cpu() * (step or 1.0)


@pytest.mark.parametrize("engine", ["bookkeeping", "vmap", "opacus_hooks", "loop"])
def test_sums_match_the_cpu_and_one_unit_stays_within_its_bound(engine: str) -> None:
    """Differences from the CPU within s / 10 a unit (matrix products in TF32 would fail), change within C (1 + s)."""
    on_device = sums(engine, "cuda", grid=False)
    assert float((on_device - sums("loop", "cpu", grid=False)).norm()) < 20 * NORM * SLACK / 10
    change = sums(engine, "cuda", grid=True) - sums(engine, "cuda", grid=True, skip=7)
    assert 0 < float(change.norm()) <= NORM * (1 + SLACK)


@pytest.mark.parametrize("engine", ["bookkeeping", "vmap", "opacus_hooks"])
def test_a_sum_is_the_same_bits_twice(engine: str) -> None:
    assert torch.equal(sums(engine, "cuda", grid=True), sums(engine, "cuda", grid=True))


def test_fast_noise_is_made_on_the_device() -> None:
    noise = FastNoise(Keystream(), 2.0, "cuda")
    sample = noise.draw(0, 1_000_000)
    assert sample.device.type == "cuda"
    assert float(sample.std()) == pytest.approx(2.0, rel=0.01)  # 14 standard deviations
    assert not torch.equal(sample, noise.draw(1, 1_000_000))
