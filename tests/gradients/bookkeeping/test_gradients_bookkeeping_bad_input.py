"""What the engine is given wrongly: the right answer all the same, or one line that says what to do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bookkeeping_reference import Applied, agree, batch_of, engine_of, refused, run, square_loss, truth
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dptrain.data.batches import PhysicalBatch
from dptrain.gradients.bookkeeping import lifted
from dptrain.gradients.bookkeeping.choice import Chooser
from dptrain.gradients.bookkeeping.contribution import PerUnit

TOKENS = torch.randn(6, 5, 6, generator=torch.Generator().manual_seed(0))

IN_PLACE: dict[str, Callable[[], nn.Module]] = {
    "after a linear map": lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)),
    "after a convolution": lambda: nn.Sequential(nn.Conv1d(5, 5, 3), nn.ReLU(inplace=True), nn.Linear(4, 3)),
    "after a norm": lambda: nn.Sequential(nn.LayerNorm(6), nn.ReLU(inplace=True), nn.Linear(6, 3)),
    "by a parameter": lambda: Applied(
        lambda m, x: m.inner(x).mul_(m.scale).add_(x), inner=nn.Linear(6, 6), scale=nn.Parameter(torch.ones(6))
    ),
    "on the input": lambda: Applied(lambda m, x: m.inner(x.mul_(2.0)), inner=nn.Linear(6, 3)),
}


@pytest.mark.parametrize("name", list(IN_PLACE))
def test_in_place_operations_that_plain_torch_allows(name: str) -> None:
    torch.manual_seed(0)
    agree(IN_PLACE[name](), batch_of(TOKENS.clone(), "unequal"))


def test_inputs_are_left_as_they_were() -> None:
    module, inputs = IN_PLACE["on the input"](), TOKENS.clone()
    engine = engine_of(module)
    for _ in range(3):
        run(engine, module, batch_of(inputs))
        assert torch.equal(inputs, TOKENS)


def test_in_place_operations_on_what_the_backward_pass_needs() -> None:
    def spoil(m: Any, x: Tensor) -> Tensor:
        h = torch.tanh(m.first(x))
        out = m.second(h)
        h.mul_(2.0)
        return out

    module = Applied(spoil, first=nn.Linear(6, 6), second=nn.Linear(6, 3))
    refused(module, batch_of(TOKENS), r"model=in-place operation: changes a value.*; write y = y \* 2")


def test_a_loss_that_averages_over_its_batch_is_right_for_a_batch_of_one() -> None:
    module = nn.Linear(6, 3)
    apart = engine_of(module, lambda outputs, targets: F.mse_loss(outputs, torch.zeros_like(outputs), reduction="mean"))
    rows = engine_of(module, lambda outputs, targets: outputs.square().flatten(1).mean(1))
    batch = batch_of(TOKENS, "unequal")
    assert torch.equal(run(apart, module, batch).total, run(rows, module, batch).total)


def test_a_loss_of_several_numbers_a_row() -> None:
    turned = Applied(lambda m, x: m.inner(x).transpose(0, 1), inner=nn.Linear(6, 3))
    refused(turned, batch_of(TOKENS), r"model=outputs \(5, 1, 3\) of one row: give a loss of shape \(5,\)")
    refused(nn.Linear(6, 3), batch_of(TOKENS), "not one number", lambda outputs, targets: outputs.square())


def test_models_that_return_a_dict_or_a_tuple() -> None:
    inner = nn.Linear(6, 3)
    batch = batch_of(TOKENS, "unequal")
    for wrap, read in ((lambda y: {"y": y}, lambda o: o["y"]), (lambda y: (y, None), lambda o: o[0])):
        module = Applied(lambda m, x, wrap=wrap: wrap(m.inner(x)), inner=inner)
        agree(module, batch, lambda outputs, targets, read=read: square_loss(read(outputs), targets))
        refused(module, batch, r"model=(dict|tuple): is what the model returns, and the loss cannot read it")


def test_an_output_that_mixes_rows_sees_one_row_alone() -> None:
    module = Applied(lambda m, x: m.inner(x) - 0.5 * m.inner(x).mean(0), inner=nn.Linear(6, 3))
    agree(module, batch_of(TOKENS, "unequal"))
    refused(
        nn.Sequential(nn.Conv1d(5, 4, 1), nn.BatchNorm1d(4)), batch_of(TOKENS), "clipping.engine=bookkeeping: .*atch"
    )


@pytest.mark.parametrize("module", [nn.Linear(6, 3), nn.Conv1d(6, 3, 3)])
def test_integer_rows_for_a_layer_of_real_numbers(module: nn.Module) -> None:
    batch = batch_of(torch.ones(6, 6, 6, dtype=torch.int64))
    refused(module, batch, "model=inputs of torch.int64: cannot be read by its first layer .*begin the model with an")


@pytest.mark.parametrize(
    "module", [nn.Linear(6, 3), nn.Conv1d(5, 3, 3), Applied(lambda m, x: m.inner(x)[0], inner=nn.LSTM(6, 3))]
)
def test_an_empty_physical_batch_adds_nothing(module: nn.Module) -> None:
    none = torch.zeros(0)
    batch = PhysicalBatch(torch.zeros(0, 5, 6), none.long(), none.long(), none)
    found = run(engine_of(module), module, batch)
    assert not found.total.any() and found.stats.norms.shape == (0,) and found.stats.losses.shape == (0,)


def test_a_use_that_cannot_be_seen_is_refused() -> None:
    """A weight worked on before the forward pass would reach the loss past the tape, and be clipped too little."""
    inner = nn.Linear(6, 3)
    early = inner.weight * 2.0
    module = Applied(lambda m, x: m.inner(x) + F.linear(x, early), inner=inner)
    refused(module, batch_of(TOKENS), "model=inner.weight: reaches the loss through a value computed outside")


def test_a_model_whose_loss_no_parameter_reaches_adds_nothing() -> None:
    module = Applied(lambda m, x: x, inner=nn.Linear(6, 3))
    assert not run(engine_of(module), module, batch_of(TOKENS)).total.any()


def test_packed_sequences_and_projected_states() -> None:
    def packed(m: Any, x: Tensor) -> Tensor:
        sequence = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5]), batch_first=True)
        return nn.utils.rnn.pad_packed_sequence(m.inner(sequence)[0], batch_first=True)[0]

    module = Applied(packed, inner=nn.LSTM(6, 4, batch_first=True))
    refused(module, batch_of(TOKENS), "packs sequences of many rows into one tensor; give the layer padded sequences")
    projected = Applied(lambda m, x: m.inner(x)[0], inner=nn.LSTM(6, 4, proj_size=2, batch_first=True))
    refused(projected, batch_of(TOKENS), r"model=lstm: projects its state \(proj_size\); set proj_size=0")


CHECKPOINTED: dict[str, Callable[[Any, Tensor, bool], Any]] = {
    "all": lambda m, x, r: checkpoint(m.inner, x, use_reentrant=r),
    "behind": lambda m, x, r: m.inner(checkpoint(torch.tanh, m.first(x), use_reentrant=r)),
    "by closure": lambda m, x, r: (lambda h: m.inner(checkpoint(lambda: h * h.tanh(), use_reentrant=r)))(m.first(x)),
    "of weights": lambda m, x, r: F.linear(x, checkpoint(torch.tanh, m.first.weight, use_reentrant=r)),
    "nothing kept": lambda m, x, r: m.inner(checkpoint(lambda h: h + 1.0, m.first(x), use_reentrant=r)),
    "in front": lambda m, x, r: m.inner(checkpoint(torch.tanh, x, use_reentrant=r)),
}


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", list(CHECKPOINTED))
def test_checkpointing_is_refused_or_right(name: str, reentrant: bool) -> None:
    """A use that is noted twice, or once without its gradient, would be a wrong sum."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    module = Applied(lambda m, x: CHECKPOINTED[name](m, x, reentrant), inner=inner, first=nn.Linear(6, 6))
    if not reentrant and name in ("nothing kept", "in front"):  # the backward pass needs no second forward pass
        agree(module, batch_of(TOKENS, "unequal"))
        return
    where = {"all": "inner.0.weight", "of weights": "first.weight"}.get(name, "a checkpointed part")
    where = "Applied" if reentrant else where
    refused(
        module,
        batch_of(TOKENS),
        f"model={where}: keeps values .*as gradient checkpointing does; turn it off and name modules in execution.c",
    )


def test_inputs_made_to_require_gradients_are_refused() -> None:
    """What transformers' gradient_checkpointing_enable() adds to the embeddings' forward pass."""
    module = Applied(lambda m, x: m.inner(m.first(x).requires_grad_()), inner=nn.Linear(6, 3), first=nn.Linear(6, 6))
    refused(module, batch_of(TOKENS), r"model=requires_grad_\(\): is called .*; call gradient_checkpointing_disable")


def test_a_parameter_that_meets_itself() -> None:
    module = Applied(lambda m, x: x @ (m.matrix @ m.matrix), matrix=nn.Parameter(torch.randn(6, 6)))
    assert not agree(module, batch_of(TOKENS, "unequal")).without_rule


def test_gradients_taken_inside_the_model_are_refused() -> None:
    module = Applied(lambda m, x: torch.func.grad(lambda z: m.inner(z).square().sum())(x), inner=nn.Linear(6, 3))
    refused(module, batch_of(TOKENS), "takes gradients of its own layers in its forward pass; set clipping.engine=loop")
    module = Applied(lambda m, x: torch.func.vmap(m.inner)(x), inner=nn.Linear(6, 3))
    refused(module, batch_of(TOKENS), "calls vmap or .* set clipping.engine=loop")


@pytest.mark.parametrize("direct", [True, False])
def test_operations_on_all_rows_do_the_same_either_way(direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifted, "DIRECT", direct)
    module = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Flatten(), nn.Linear(20, 3))
    agree(module, batch_of(TOKENS))
    nested = Applied(lambda m, x: torch.func.vmap(m.inner)(x), inner=nn.Linear(6, 3))
    refused(nested, batch_of(TOKENS), "set clipping.engine=loop")


def _no_memory() -> PerUnit:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:116] . DefaultCPUAllocator: not enough memory: you tried to")


def _none_to_map() -> PerUnit:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you")


def _on_the_gpu() -> PerUnit:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def test_ways_without_memory_drop_out_of_the_first_trial() -> None:
    chooser = Chooser()
    slim = PerUnit(torch.ones(2, 3))
    assert chooser.take("use", {"wide": _no_memory, "slim": lambda: slim, "device": _on_the_gpu}) is slim
    assert chooser.picks["use"] == "slim"
    chooser.settle()


@pytest.mark.parametrize("way", [_no_memory, _none_to_map, _on_the_gpu])
def test_no_memory_for_any_way_names_the_setting(way: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = "dptrain.gradients.bookkeeping.seen.Tokens._ways"
    monkeypatch.setattr(ways, lambda self, tape: {"kept": way, "gram1": way})
    refused(nn.Linear(6, 3), batch_of(TOKENS), "execution.physical_batch_size=5: does not fit in memory; lower it")


ENDS_WITHOUT_MEMORY = """
import torch
from dptrain.data.batches import PhysicalBatch
from dptrain.errors import ConfigError
from dptrain.gradients.bookkeeping.engine import BookkeepingEngine
from dptrain.gradients.protocol import ClippingRule, EngineSettings
from dptrain.training.memory import keep_within

torch.set_num_threads(1)
Linear = torch.nn.Linear
module = torch.nn.Sequential(Linear(64, 512), torch.nn.Tanh(), Linear(512, 512), Linear(512, 2))
loss = lambda outputs, targets: outputs.flatten(1).sum(1)

def batch(rows):
    return PhysicalBatch(torch.randn(rows, 64, 64), torch.zeros(rows), torch.arange(rows), torch.ones(rows))

def engine(limit):
    return BookkeepingEngine(module, loss, ClippingRule(1.0, None), EngineSettings(pass_limit=limit))

engine(None).clipped_parts(batch(4))
large = batch(2048)
keep_within(320 << 20)
try:
    engine(None).clipped_parts(large)
except ConfigError as error:
    print(error)
print(len(engine(64 << 20).clipped_parts(large)[1].norms))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits by setrlimit")
def test_a_machine_without_memory_is_one_line_and_a_limit_helps() -> None:
    """Allocations fail for real: 2,048 rows of 64 tokens keep some 800 MiB, where 320 are to be had."""
    done = subprocess.run([sys.executable, "-c", ENDS_WITHOUT_MEMORY], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [
        "execution.physical_batch_size=2048: does not fit in memory; lower it, or set execution.memory_limit",
        "2048",
    ]


def test_other_errors_of_a_trial_stay_what_they_are() -> None:
    def broken() -> PerUnit:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        Chooser().take("use", {"kept": broken, "gram1": broken})


def test_a_module_called_twice_is_right_and_a_layer_without_rule_is_named() -> None:
    twice = Applied(lambda m, x: m.inner(torch.tanh(m.inner(x))), inner=nn.Linear(6, 6))
    assert not agree(twice, batch_of(TOKENS, "unequal")).without_rule
    with pytest.warns(UserWarning, match="performance drop"):
        engine = agree(Applied(lambda m, x: m.inner(x, x), inner=nn.Bilinear(6, 6, 3)), batch_of(TOKENS))
    assert engine.without_rule == {"bilinear": "inner.weight"}


def test_rows_of_nan_in_padding_reach_nothing() -> None:
    inputs = TOKENS.clone()
    inputs[3:5] = float("nan")
    module = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3))
    found = run(engine_of(module), module, batch_of(inputs, "padded"))
    clean = truth(module, batch_of(inputs.nan_to_num(), "padded"))
    assert torch.allclose(found.total, clean.total, atol=1e-5)
    assert not found.stats.norms[3:].any()
