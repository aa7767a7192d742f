"""The engine in other people's loops: its sums against Opacus' own and against autograd, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from torch import Tensor, nn

import dptrain
from dptrain.errors import ConfigError

ROWS = 24


def model() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3)]
    return nn.Sequential(*layers)


def rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn(ROWS, 1, 8, 8, generator=generator), torch.arange(ROWS) % 3


def test_it_stands_in_for_opacus_hooks_in_a_private_optimizer() -> None:
    """Both loops, without noise: the same step to 1e-5 of the clipping norm a row."""
    inputs, targets = rows()
    theirs, ours = model(), model()
    settings = {"noise_multiplier": 0.0, "max_grad_norm": 0.5, "expected_batch_size": ROWS}
    hooked = GradSampleModule(theirs)
    opacus = DPOptimizer(torch.optim.SGD(theirs.parameters(), lr=1.0), **settings)
    with pytest.warns(UserWarning, match="Full backward hook is firing"):
        nn.functional.cross_entropy(hooked(inputs), targets).backward()
    opacus.step()
    optimizer = DPOptimizerFastGradientClipping(torch.optim.SGD(ours.parameters(), lr=1.0), **settings)
    clip = dptrain.Clipper(ours, nn.CrossEntropyLoss(), max_grad_norm=0.5)
    clipped = clip.backward(inputs, targets)
    assert int((clipped.norms > 0.5).sum()) > ROWS // 2  # clipping matters here
    optimizer.step()
    for one, other in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert float((one - other).detach().norm()) <= 0.5 * 1e-5


def test_units_norms_and_losses_are_those_of_autograd() -> None:
    module, (inputs, targets) = model(), rows()
    person = torch.tensor([7, 3, 3, 90] * (ROWS // 4))
    clipped = dptrain.Clipper(module, nn.CrossEntropyLoss(), 0.5)(inputs, targets, person)
    expected = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    norms = []
    for label in (3, 7, 90):
        own = person == label
        loss = nn.functional.cross_entropy(module(inputs[own]), targets[own])
        grads = torch.autograd.grad(loss, list(module.parameters()))
        norms.append(float(sum((g.double().square().sum() for g in grads), torch.zeros(())).sqrt()))
        for total, grad in zip(expected.values(), grads, strict=True):
            total += grad * min(1.0, 0.5 / norms[-1])
    assert clipped.norms.tolist() == pytest.approx(norms, rel=1e-5)
    for name, total in expected.items():
        assert torch.allclose(clipped.sums[name], total, atol=1e-5)
    assert torch.allclose(clipped.losses, nn.functional.cross_entropy(module(inputs), targets, reduction="none"))
    assert all(p.grad is None for p in module.parameters())


def test_gradients_add_up_over_calls_and_an_empty_batch_adds_nothing() -> None:
    module, (inputs, targets) = model(), rows()
    clip = dptrain.Clipper(module, nn.CrossEntropyLoss(), 0.5)
    whole = clip(inputs, targets).sums
    clip.backward(inputs[:10], targets[:10])
    empty = clip.backward(inputs[:0], targets[:0])
    assert empty.norms.shape == empty.losses.shape == (0,)
    clip.backward(inputs[10:], targets[10:])
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, whole[name], atol=1e-5)
    assert clip.without_rule == {}


def test_a_poisoned_unit_adds_nothing() -> None:
    module, (inputs, targets) = model(), rows()
    clip = dptrain.Clipper(module, nn.CrossEntropyLoss(), 0.5)
    clean = clip(inputs[1:], targets[1:]).sums
    inputs[0, 0, 0, 0] = float("nan")
    found = clip(inputs, targets)
    assert found.norms[0] == float("inf")
    assert all(torch.allclose(found.sums[name], clean[name], atol=1e-5) for name in clean)


@pytest.mark.parametrize("more", [{"checkpoint": ["0"]}, {"compiled": True}, {"checkpoint": ["4"], "compiled": True}])
def test_settings_of_memory_and_speed_change_no_sum(more: dict[str, Any]) -> None:
    if "compiled" in more:
        pytest.importorskip("numba", reason="needs the extra 'fast'")
    inputs, targets = rows()
    module = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 3))
    plain = dptrain.Clipper(module, nn.CrossEntropyLoss(), 0.5)(inputs, targets)
    clip = dptrain.Clipper(module, nn.CrossEntropyLoss(), 0.5, **more)
    for _ in range(2):
        other = clip(inputs, targets)
        assert torch.allclose(other.norms, plain.norms, rtol=1e-6)
        for name, total in plain.sums.items():
            assert float((other.sums[name] - total).norm()) <= 1e-5 * ROWS * 0.5


def test_what_cannot_be_done_is_said_in_one_line() -> None:
    frozen = nn.Linear(2, 2).requires_grad_(False)
    wrapped = model()
    for module, norm, said in (
        (model(), 0.0, "max_grad_norm=0.0"),
        (model(), float("nan"), "max_grad_norm=nan"),
        (frozen, 1.0, "nothing to train"),
        (GradSampleModule(wrapped), 1.0, "Opacus' hooks"),
        (wrapped, 1.0, "Opacus' hooks"),
    ):
        with pytest.raises(ConfigError, match=said) as error:
            dptrain.Clipper(module, nn.CrossEntropyLoss(), norm)
        assert "\n" not in str(error.value)
    clip = dptrain.Clipper(model(), nn.CrossEntropyLoss(), 1.0)
    inputs, targets = rows()
    with pytest.raises(ConfigError, match="give as many of each"):
        clip(inputs, targets[1:])
    with pytest.raises(ConfigError, match="give as many of each"):
        clip(inputs, targets, torch.zeros(3, dtype=torch.int64))


def test_compiled_loops_and_patterns_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"execution\.checkpoint=nothing: matches no module of this model"):
        dptrain.Clipper(model(), nn.CrossEntropyLoss(), 1.0, checkpoint=["nothing"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"compiled=True: numba is not installed; pip install 'dptrain\[fast\]'"):
        dptrain.Clipper(model(), nn.CrossEntropyLoss(), 1.0, compiled=True)


def test_it_needs_neither_opacus_nor_hydra_nor_mlflow() -> None:
    code = (
        "import dptrain, sys; dptrain.Clipper;"
        "sys.exit(bool({'opacus', 'hydra', 'mlflow', 'dp_accounting', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
