"""Opacus' ghost clipping under the engines' protocol; what both engines on its hooks refuse, and refuse no more."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dptrain.data.batches import PhysicalBatch
from dptrain.errors import ConfigError
from dptrain.gradients.protocol import ClippingRule, Engine, EngineSettings
from dptrain.registry import engines

OPACUS = ["opacus_hooks", "opacus_ghost"]
FREE = ClippingRule(1.0, None)
GRID = ClippingRule(1.0, 2.0**-20)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def build(name: str, module: nn.Module, rule: ClippingRule = FREE, dtype: torch.dtype | None = None) -> Engine:
    return engines.build(name, module, cross_entropy, rule, EngineSettings(dtype))


def batch_of(inputs: Tensor, weight: Tensor | None = None) -> PhysicalBatch:
    rows = len(inputs)
    return PhysicalBatch(
        inputs, torch.arange(rows) % 3, torch.arange(rows), torch.ones(rows) if weight is None else weight
    )


def total(engine: Engine, batch: PhysicalBatch, module: nn.Module) -> tuple[Tensor, Tensor]:
    out = torch.zeros(sum(p.numel() for p in module.parameters() if p.requires_grad), dtype=torch.float64)
    return out, engine.add_clipped_sum(batch, out).norms


def truth(module: nn.Module, batch: PhysicalBatch, rule: ClippingRule = FREE) -> tuple[Tensor, Tensor]:
    """Clipped sum and norms by float64 autograd on one row at a time."""
    wide = module.to(torch.float64)
    gradients = []
    for row in range(len(batch.weight)):
        inputs = batch.inputs[row : row + 1]
        loss = cross_entropy(wide(inputs.double() if inputs.is_floating_point() else inputs), batch.targets[[row]])[0]
        moving = [p for p in wide.parameters() if p.requires_grad]
        grads = torch.autograd.grad(loss * batch.weight[row], moving, allow_unused=True, materialize_grads=True)
        gradients.append(torch.cat([g.flatten() for g in grads]))
    module.float()
    stacked = torch.stack(gradients)
    norms = stacked.norm(dim=1)
    return (stacked * (rule.clipping_norm / norms).clamp(max=1.0).nan_to_num(0.0)[:, None]).sum(0), norms


class Tokens(nn.Module):
    """Embedding with a padding row, an encoder-like block on (R, T, d), a fourth dimension, and a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8, padding_idx=0)
        self.norm = nn.RMSNorm(8)
        self.inner = nn.Linear(4, 5)
        self.out = nn.Linear(10, 3, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        states = self.norm(self.table(tokens)).unflatten(2, (2, 4))  # (R, T, 2, 4)
        return self.out(torch.tanh(self.inner(states)).flatten(2).mean(1))


def places(groups: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, stride=2, padding=1, bias=False),
        nn.GroupNorm(2, 8),
        nn.Conv2d(8, 8, 3, groups=groups, dilation=2, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.LayerNorm(128),
        nn.Linear(128, 3),
    )


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["tokens", "conv", "grouped", "mlp"]),
    clip=st.sampled_from([0.05, 1.0, 1e4]),
)
def test_ghost_sums_are_those_of_float64_autograd_one_row_at_a_time(seed: int, kind: str, clip: float) -> None:
    torch.manual_seed(seed)
    module, inputs = {
        "tokens": lambda: (Tokens(), torch.randint(0, 11, (5, 7))),
        "conv": lambda: (places(1), torch.randn(5, 2, 8, 8)),
        "grouped": lambda: (places(4), torch.randn(5, 2, 8, 8)),
        "mlp": lambda: (nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)), 10 * torch.randn(5, 6)),
    }[kind]()
    next(iter(module.parameters())).requires_grad_(seed % 3 != 0)
    batch, rule = batch_of(inputs), ClippingRule(clip, None)
    found, norms = total(build("opacus_ghost", module, rule), batch, module)
    expected, true_norms = truth(module, batch, rule)
    assert torch.allclose(norms, true_norms, rtol=2e-5)
    scale = float(true_norms.clamp(max=clip).sum())
    assert float((found - expected).norm()) <= 2e-5 * scale


@pytest.mark.parametrize("engine", OPACUS)
def test_a_large_layer_keeps_to_the_clipping_norm(engine: str) -> None:
    """Opacus' own float32 norm of one row of 3 million values comes out some 1e-4 too small; ours does not."""
    torch.manual_seed(0)
    module = nn.Linear(1_000_000, 3)
    batch = batch_of(torch.randn(1, 1_000_000))
    found, norms = total(build(engine, module, ClippingRule(1e-3, None)), batch, module)
    assert abs(float(found.norm()) / 1e-3 - 1) < 1e-6
    assert float(norms[0]) == pytest.approx(float(truth(module, batch)[1][0]), rel=1e-5)


class Signed(nn.Module):
    """One layer on every token, added up by weights that the row brings."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x[..., :-1]) * x[..., -1:]).sum(1)


@pytest.mark.parametrize("layer", [nn.Linear(8, 3), nn.LayerNorm(8)])
@pytest.mark.parametrize("size", [1e3, 1e5])
def test_rows_whose_tokens_cancel_stay_within_the_clipping_norm(layer: nn.Module, size: float) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(4, 64, 9)
    inputs[0] = inputs[0, 0].clone()
    inputs[0, :, -1] = size * torch.where(torch.arange(64) % 2 == 0, 1.0, -1.0)
    inputs[0, -1, -1] += 1.0
    module, batch = Signed(layer), batch_of(inputs)
    rule = ClippingRule(0.01, None)
    engine = build("opacus_ghost", module, rule)
    every = total(engine, batch, module)[0]
    rest = total(engine, batch_of(inputs, torch.tensor([0.0, 1.0, 1.0, 1.0])), module)[0]
    assert float((every - rest).norm()) <= 0.01 * (1 + 1e-4)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_poisoned_row_and_poisoned_padding_add_nothing(poison: float) -> None:
    module, inputs = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(6, 4)
    weight = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    inputs[[1, 5]] = poison
    batch = batch_of(inputs, weight)
    found, norms = total(build("opacus_ghost", module), batch, module)
    clean = total(
        build("opacus_ghost", module),
        PhysicalBatch(inputs[[0, 2, 3]], batch.targets[[0, 2, 3]], torch.arange(3), torch.ones(3)),
        module,
    )[0]
    assert float((found - clean).norm()) <= 1e-6
    assert norms[1] == float("inf") and not norms[4:].any()


def test_a_grid_scales_the_sum_and_many_rows_are_added_in_float64() -> None:
    torch.manual_seed(0)
    module, inputs = nn.Linear(4, 3), torch.randn(1100, 4)
    free, norms = total(build("opacus_ghost", module), batch_of(inputs), module)
    on_grid, _ = total(build("opacus_ghost", module, GRID), batch_of(inputs), module)
    assert torch.allclose(on_grid * 2.0**-20, free, rtol=1e-12)
    expected, true_norms = truth(module, batch_of(inputs))
    assert torch.allclose(norms, true_norms, rtol=1e-5)
    assert float((free - expected).norm()) <= 1e-5 * float(true_norms.clamp(max=1.0).sum())


def test_a_layer_that_a_batch_does_not_reach_is_zero_and_is_found_again() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.use = nn.Linear(4, 3), nn.Linear(4, 3), False

        def forward(self, x: Tensor) -> Tensor:
            aside = self.b(x)
            return self.a(x) + aside if self.use else self.a(x)

    module = Sometimes()
    engine, batch = build("opacus_ghost", module), batch_of(torch.randn(4, 4))
    without, _ = total(engine, batch, module)
    assert not without[15:].any() and without[:15].any()
    module.use = True
    assert total(engine, batch, module)[0].shape == without.shape


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(torch.tanh(self.inner(x))))


class Borrowed(nn.Module):
    """Uses a layer's weight behind the layer's back."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(torch.tanh(self.out(x)), self.out.weight)[:, :3]


class Mixing(nn.Module):
    """Subtracts the batch's mean: rows meet."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.out(x)
        return y - y.mean(0)


class Bare(nn.Module):
    """A parameter of its own, in no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.out = nn.Parameter(torch.ones(4)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x * self.scale)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Twice(), "called twice"),
        (Borrowed(), "outside its own layer"),
        (Mixing(), "meet"),
        (Bare(), r"model \(Bare\)"),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), "BatchNorm1d.*buffers"),
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 3)), "random"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_ghost_refuses_in_one_line_what_it_cannot_do(module: nn.Module, reason: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ConfigError, match=rf"clipping.engine=opacus_ghost: .*{reason}.*set clipping.engine=auto") as e:
        total(build("opacus_ghost", module), batch_of(torch.randn(6, 4)), module)
    assert "\n" not in str(e.value)


def test_ghost_refuses_units_of_several_rows_shared_weights_and_autocast() -> None:
    module = nn.Linear(4, 3)
    users = PhysicalBatch(torch.randn(4, 4), torch.arange(4) % 3, torch.tensor([0, 0, 1, 2]), torch.ones(4))
    with pytest.raises(ConfigError, match=r"units have several; set clipping.engine=auto"):
        total(build("opacus_ghost", module), users, module)
    with pytest.raises(ConfigError, match=r"execution.dtype=bfloat16.*execution.dtype=float32"):
        build("opacus_ghost", module, dtype=torch.bfloat16)
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(ConfigError, match="shared parameter"):
        build("opacus_ghost", tied)


class Attention(nn.Module):
    """The keys' bias has no gradient but rounding errors: it moves all scores of a query alike."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2) / 32**0.5
        return self.head(self.out(scores.softmax(2) @ self.value(x)).mean(1))


@pytest.mark.parametrize("engine", OPACUS)
@pytest.mark.parametrize("seed", range(3))
def test_a_parameter_whose_gradient_is_rounding_alone_is_no_reason_to_refuse(engine: str, seed: int) -> None:
    torch.manual_seed(seed)
    module, batch = Attention(), batch_of(torch.randn(8, 40, 32))
    found, _ = total(build(engine, module), batch, module)
    expected, norms = truth(module, batch)
    assert float((found - expected).norm()) <= 1e-5 * float(norms.clamp(max=1.0).sum())


def test_the_old_name_leads_to_the_new_one() -> None:
    with pytest.raises(ConfigError, match=r"clipping.engine=opacus: .*opacus_hooks"):
        build("opacus", nn.Linear(2, 2))
