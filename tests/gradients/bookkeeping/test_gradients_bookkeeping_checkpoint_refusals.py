"""Patterns that name nothing, and modules that cannot be passed through twice: refused in one line, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bookkeeping_reference import Applied, batch_of, run, square_loss, truth
from torch import Tensor, nn
from torch.nn import functional as F

from dptrain.errors import ConfigError
from dptrain.gradients.bookkeeping.checkpoint import checkpointed_modules
from dptrain.gradients.bookkeeping.engine import BookkeepingEngine
from dptrain.gradients.protocol import ClippingRule, EngineSettings

ROWS = torch.randn(6, 4, 6, generator=torch.Generator().manual_seed(0))


class Part(nn.Module):
    """A function of any arguments, and of layers and buffers given by name."""

    def __init__(self, apply: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.apply_to, self.linear, self.count = apply, nn.Linear(6, 6), 0
        self.register_buffer("seen", torch.zeros(()))
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.apply_to(self, *args, **kwargs)


def around(part: Part, forward: Callable[[Any, Tensor], Any] | None = None) -> Applied:
    """A model with the part in the middle."""
    torch.manual_seed(0)
    between = forward or (lambda m, h: m.part(h))
    return Applied(lambda m, x: m.last(between(m, m.first(x))), part=part, first=nn.Linear(6, 6), last=nn.Linear(6, 2))


def engine_of(module: nn.Module, *patterns: str, grid: float | None = None) -> BookkeepingEngine:
    return BookkeepingEngine(module, square_loss, ClippingRule(1.0, grid), EngineSettings(checkpoint=patterns))


def refused(module: nn.Module, match: str, grid: float | None = None) -> None:
    """And the module is left as it was."""
    with pytest.raises(ConfigError, match=match) as caught:
        run(engine_of(module, "part", grid=grid), module, batch_of(ROWS))
    assert "\n" not in str(caught.value)
    assert all("forward" not in part.__dict__ for part in module.modules())


def blocks() -> nn.Module:
    return Applied(
        lambda m, x: x, blocks=nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(2)), tail=nn.Tanh()
    )


def test_patterns_take_the_outermost_modules() -> None:
    assert list(checkpointed_modules(blocks(), ["blocks.*"])) == ["blocks.0", "blocks.1"]
    assert list(checkpointed_modules(blocks(), ["*s*", "tail"])) == ["blocks.0", "blocks.1", "tail"]
    assert list(checkpointed_modules(blocks(), ["blocks.*.0"])) == ["blocks.0.0", "blocks.1.0"]
    assert not checkpointed_modules(blocks(), [])


@pytest.mark.parametrize(
    ("patterns", "match"),
    [
        (["layers.*"], r"execution.checkpoint=layers.\*: matches no module of this model; try blocks.\*$"),
        (["blocks"], r"execution.checkpoint=blocks: is a list of modules, .*; write blocks.\*$"),
        (["blocks.*", "blocks.0.0"], "=blocks.0.0: lies inside blocks.0, .* cannot be nested; drop one of the two"),
        (["blocks.*.*", "blocks.1"], None),
    ],
)
def test_patterns_that_name_nothing(patterns: list[str], match: str | None) -> None:
    if match is None:  # the first still names blocks.0.0
        assert list(checkpointed_modules(blocks(), patterns)) == ["blocks.0.0", "blocks.1"]
        return
    with pytest.raises(ConfigError, match=match):
        engine_of(blocks(), *patterns)


def test_a_model_without_parts_is_told_so() -> None:
    with pytest.raises(ConfigError, match=r"execution.checkpoint=blocks.\*: matches no module of this model; drop it"):
        checkpointed_modules(nn.Linear(2, 2), ["blocks.*"])


def _writes_state(m: Any, x: Tensor) -> Tensor:
    m.seen += 1
    return m.linear(x)


def _replaces_state(m: Any, x: Tensor) -> Tensor:
    m.seen = m.seen + 1
    return m.linear(x)


def _another_each_time(m: Any, x: Tensor) -> Tensor:
    m.count += 1
    return m.linear(m.linear(x) if m.count % 3 == 1 else x)


def _writes_into(m: Any, x: Tensor) -> Tensor:
    x.mul_(2.0)
    return m.linear(x)


def _returns_a_weight(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return m.linear(x), m.linear.weight * 2


PARTS: dict[str, tuple[Callable[..., Any], str]] = {
    "buffers": (_writes_state, "execution.checkpoint=part: writes into its buffers, .* execution.memory_limit=0"),
    "buffers replaced": (_replaces_state, "execution.checkpoint=part: writes into its buffers"),
    "random": (lambda m, x: F.dropout(m.linear(x), 0.5), "execution.checkpoint=part: draws random numbers"),
    "stateful": (_another_each_time, "execution.checkpoint=part: does something else when called again"),
    "arguments": (_writes_into, "execution.checkpoint=part: writes into its arguments"),
}


@pytest.mark.parametrize("name", list(PARTS))
def test_a_second_passage_that_would_differ(name: str) -> None:
    apply, match = PARTS[name]
    refused(around(Part(apply)), match)


def test_a_value_of_a_row_that_is_no_argument() -> None:
    """An attribute that another module sets would be another's in the backward pass, or lose its gradient."""

    def by_attribute(m: Any, h: Tensor) -> Tensor:
        m.part.mask = h.tanh()
        first = m.part(h)
        m.part.mask = h.sigmoid()
        return first

    match = "execution.checkpoint=part: reads a value of a row that is not among its arguments"
    refused(around(Part(lambda m, x: m.linear(x) * m.mask), by_attribute), match)

    def remembered(m: Any, x: Tensor) -> Tensor:
        m.memory = x if not hasattr(m, "memory") else m.memory
        return m.linear(x) + m.memory

    refused(around(Part(remembered)), match)
    refused(around(Part(lambda m, x: m.mask), by_attribute), match)


def test_a_value_computed_from_weights_may_go_in_but_not_out() -> None:
    def out(m: Any, h: Tensor) -> Tensor:
        y, weight = m.part(h)
        return F.linear(y, weight)

    module = around(Part(_returns_a_weight), out)
    batch = batch_of(ROWS, "unequal")
    engine = engine_of(module, "part")
    expected = truth(module, batch)
    found = run(engine, module, batch)  # copies a row where such values are refused
    assert float((found.total - expected.total).norm()) <= 1e-5 * float(expected.total.norm())
    inward = around(
        Part(lambda m, x, weight: F.linear(m.linear(x), weight) + F.linear(x, m.linear.weight * weight)),
        lambda m, h: m.part(h, m.part.linear.weight * 2.0) + F.linear(h, m.part.linear.weight),
    )
    expected = truth(inward, batch)
    found = run(engine_of(inward, "part"), inward, batch)
    assert float((found.total - expected.total).norm()) <= 1e-5 * float(expected.total.norm())


def test_a_value_computed_before_the_forward_pass() -> None:
    part = Part(lambda m, x: m.linear(x))
    early = part.linear.weight * 2.0
    part.apply_to = lambda m, x: m.linear(x) + F.linear(x, early)
    refused(around(part), "model=part.linear.weight: reaches the loss through a value computed outside")


def test_what_is_written_into_what_a_passage_has_kept() -> None:
    """Its arguments must be the same in the backward pass."""

    def forward(m: Any, h: Tensor) -> Tensor:
        y = m.part(h)
        h.mul_(2.0)
        return y

    refused(around(Part(lambda m, x: m.linear(x).tanh()), forward), "model=in-place operation: changes a value")
    returned = around(Part(lambda m, x: x), lambda m, h: m.part(h).mul_(2.0))
    refused(returned, "model=in-place operation: changes a value")

    def over(m: Any, h: Tensor) -> Tensor:
        scale = torch.ones(6)
        y = m.part(h, scale)
        scale.mul_(2.0)
        return y

    refused(around(Part(lambda m, x, s: m.linear(x) * s), over), "is given a value of all rows that is written into")


@pytest.mark.parametrize("grid", [None, 2.0**-12])
def test_gradients_that_are_others_in_the_second_walk(grid: float | None) -> None:
    """What the first walk's norms do not bound is never added: a module that counts its calls by itself."""

    def grows(m: Any, x: Tensor) -> Tensor:
        m.count += 1
        return m.linear(x) * (10.0 if m.count % 3 == 0 else 1.0)

    match = (
        "execution.checkpoint=the model: had other gradients in its second backward pass, .* leave checkpointing out"
    )
    refused(around(Part(grows)), match, grid)

    def shrinks(m: Any, x: Tensor) -> Tensor:
        m.count += 1
        return m.linear(x) * (0.1 if m.count % 3 == 0 else 1.0)

    refused(around(Part(shrinks)), match, grid)  # within the bound, but not the sum that was asked for


def test_torch_s_own_checkpointing_inside_is_refused() -> None:
    from torch.utils.checkpoint import checkpoint

    part = Part(lambda m, x: checkpoint(lambda h: m.linear(h).tanh(), x, use_reentrant=False))
    refused(around(part), r"gradient checkpointing does; turn it off and name modules in execution.checkpoint=\[...\]")
