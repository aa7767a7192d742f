"""Checkpointed modules: the same norms and sums as without them and as float64 autograd, one unit at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from bookkeeping_reference import LAYOUTS, Applied, Found, batch_of, run, square_loss, truth
from torch import Tensor, nn
from torch.nn import functional as F

from dptrain.data.batches import PhysicalBatch
from dptrain.gradients.bookkeeping.engine import BookkeepingEngine
from dptrain.gradients.bookkeeping.meter import Meter
from dptrain.gradients.protocol import ClippingRule, EngineSettings, RowLoss, trainable

WIDTH, TOKENS = 8, 5


class Block(nn.Module):
    """Pre-norm attention and a feed-forward part, with what it is told by keyword; gives a tuple."""

    def __init__(self, rank: int = 0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.widen, self.narrow = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)
        self.down = nn.Linear(WIDTH, rank, bias=False) if rank else None
        self.up = nn.Linear(rank, WIDTH, bias=False) if rank else None
        self.calls = 0

    def forward(self, x: Tensor, *, mask: Tensor | None = None, extras: dict[str, Any]) -> tuple[Tensor, Any]:
        self.calls += 1
        normed = self.norm1(x)
        query = self.query(normed)
        if self.down is not None and self.up is not None:
            query = query + self.up(self.down(normed))
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (query, self.key(normed), self.value(normed)))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).flatten(2)) * extras["scale"]
        return x + self.narrow(F.gelu(self.widen(self.norm2(x)))), {"mask": mask, "none": None, "x": x}


class Encoder(nn.Module):
    """Embeddings, blocks, a head; ``tied`` uses the table's weight in the head."""

    def __init__(self, blocks: int = 3, tied: bool = False, rank: int = 0, twice: bool = False) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(11, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList(Block(rank) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 11, bias=False)
        if tied:
            self.head.weight = self.words.weight
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not rank or ".down." in name or ".up." in name)
        self.twice = twice

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        mask = torch.zeros(TOKENS, TOKENS).masked_fill(torch.ones(TOKENS, TOKENS).triu(1).bool(), float("-inf"))
        for block in [*self.blocks, *(self.blocks[:2] if self.twice else [])]:
            x, more = block(x, mask=mask, extras={"scale": 0.5})
            x = x + 0.1 * more["x"].tanh()
        return self.head(self.norm(x))


class NormedConvolution(nn.Module):
    """Convolution, GroupNorm, ReLU, beside a shortcut; ``standard`` computes its weight from a parameter."""

    def __init__(self, standard: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.standard = nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), standard

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight
        if self.standard:
            weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / (weight.std((1, 2, 3), keepdim=True) + 0.1)
        return x + F.silu(self.norm(F.conv2d(x, weight, self.conv.bias, padding=1)))


def convolutions(standard: bool = False) -> nn.Module:
    blocks = nn.ModuleList(NormedConvolution(standard) for _ in range(3))

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        for block in m.blocks:
            x = block(x)
        return m.head(x.mean((2, 3)))

    return Applied(forward, stem=nn.Conv2d(3, 4, 3), blocks=blocks, head=nn.Linear(4, 3))


IDS = torch.randint(0, 11, (6, TOKENS), generator=torch.Generator().manual_seed(3))
PICTURES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(4))


def engine_with(module: nn.Module, clip: float, patterns: Sequence[str], **more: Any) -> BookkeepingEngine:
    settings = EngineSettings(checkpoint=tuple(patterns), **more)
    return BookkeepingEngine(module, square_loss, ClippingRule(clip, None), settings)


def agree(
    module: nn.Module,
    batch: PhysicalBatch,
    patterns: Sequence[str] = ("blocks.*",),
    loss: RowLoss = square_loss,
    **settings: Any,
) -> tuple[Found, Found]:
    """Asserts that checkpointing changes nothing but rounding, and that float64 says the same; gives both sums."""
    norms = truth(module, batch, loss).stats.norms
    clip = float(norms[norms > 0].median()) * 1.01
    expected = truth(module, batch, loss, clip)
    rule = ClippingRule(clip, None)
    before = {name: b.clone() for name, b in module.named_buffers()}
    found = []
    for chosen in ((), patterns):
        engine = BookkeepingEngine(module, loss, rule, EngineSettings(checkpoint=tuple(chosen), **settings))
        one = run(engine, module, batch)  # the first pass times the ways
        for _ in range(2):
            assert torch.allclose(one.stats.norms, expected.stats.norms, rtol=1e-5, atol=1e-12)
            assert float((one.total - expected.total).norm()) <= 1e-5 * float(expected.total.norm())
            one = run(engine, module, batch)
        found.append(one)
    without, with_them = found
    assert torch.allclose(with_them.stats.norms, without.stats.norms, rtol=2e-6, atol=1e-12)
    assert torch.equal(with_them.stats.losses, without.stats.losses)
    assert float((with_them.total - without.total).norm()) <= 2e-6 * float(without.total.norm())
    assert all(torch.equal(b, before[name]) for name, b in module.named_buffers())
    assert all("forward" not in part.__dict__ for part in module.modules())
    return without, with_them


MODELS: dict[str, Callable[[], nn.Module]] = {
    "encoder": Encoder,
    "tied outside": lambda: Encoder(tied=True),
    "called twice": lambda: Encoder(twice=True),
    "adapters": lambda: Encoder(rank=2),
    "tied and called twice": lambda: Encoder(tied=True, twice=True),
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("name", list(MODELS))
def test_encoders(name: str, layout: str) -> None:
    torch.manual_seed(0)
    agree(MODELS[name](), batch_of(IDS, layout))


@pytest.mark.parametrize("grid", [2.0**-12, 2.0**-20, 2.0])
def test_sums_in_grid_steps(grid: float) -> None:
    """What a unit may add is C / grid then; grids finer and coarser than the gradient's own unit."""
    torch.manual_seed(0)
    module, batch = Encoder(), batch_of(IDS)
    norms = truth(module, batch).stats.norms
    rule = ClippingRule(float(norms.median()), grid)
    plain, twice = (
        run(BookkeepingEngine(module, square_loss, rule, EngineSettings(checkpoint=patterns)), module, batch)
        for patterns in ((), ("blocks.*",))
    )
    assert float((twice.total - plain.total).norm()) <= 2e-6 * float(plain.total.norm())
    assert float(plain.total.norm()) > 0.1 * rule.clipping_norm / grid


@pytest.mark.parametrize("layout", ["one row", "unequal"])
@pytest.mark.parametrize("standard", [False, True])
def test_convolutions_with_group_norm(standard: bool, layout: str) -> None:
    """Also with weights computed from weights, whose gradients go back before the module is let go."""
    torch.manual_seed(0)
    agree(convolutions(standard), batch_of(PICTURES, layout))


def test_every_module_at_the_top_may_be_one() -> None:
    torch.manual_seed(0)
    agree(Encoder(tied=True), batch_of(IDS, "unequal"), ["blocks.*", "words", "norm", "head"])
    agree(convolutions(True), batch_of(PICTURES), ["*"])


def test_a_checkpointed_module_is_passed_through_three_times() -> None:
    """Once forward and once in each walk; one that is not, once."""
    torch.manual_seed(0)
    module = Encoder()
    engine = engine_with(module, 1.0, ["blocks.[12]"])
    run(engine, module, batch_of(IDS))
    assert [block.calls for block in module.blocks] == [1, 3, 3]


def test_no_activation_of_a_checkpointed_module_is_kept() -> None:
    """Blocks hold what their inputs take, and one block's activations more than that at any time."""
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()) for _ in range(12)]
    module = nn.Sequential(*parts)
    rows = torch.randn(32, 16, 64)
    batch = PhysicalBatch(rows, torch.zeros(32), torch.arange(32), torch.ones(32))
    most = {}
    for patterns in ((), ("*",)):
        engine = engine_with(module, 1.0, patterns)
        engine.clipped_parts(batch)
        with Meter() as meter:
            engine.clipped_parts(batch)
        most[patterns] = meter.most
    weights = sum(p.nbytes for p in module.parameters())
    inputs, of_one = 12 * rows.nbytes, 8 * rows.nbytes  # activations, their gradients and what a norm takes
    assert most["*",] <= weights + inputs + of_one < 0.5 * most[()]


@pytest.mark.parametrize("limit", [0, 1 << 17])
def test_under_a_limit_on_memory(limit: int) -> None:
    torch.manual_seed(0)
    module = Encoder()
    ids = torch.randint(0, 11, (24, TOKENS))
    unit = torch.arange(24) // 2
    batch = PhysicalBatch(ids, unit % 3, unit, torch.full((24,), 0.5))
    agree(module, batch, pass_limit=limit)


def test_a_pass_stays_under_the_limit() -> None:
    module = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(6)), nn.Linear(64, 3))
    rows = torch.randn(256, 8, 64)
    batch = PhysicalBatch(rows, torch.zeros(256), torch.arange(256), torch.ones(256))
    engine = engine_with(module, 1.0, ["[0-5]"], pass_limit=1 << 20)
    engine.clipped_parts(batch)
    with Meter() as meter:
        engine.clipped_parts(batch)
    assert meter.most <= 1.1 * (1 << 20)


def test_units_that_are_not_finite_add_exactly_nothing() -> None:
    torch.manual_seed(0)
    module = convolutions()
    clean = batch_of(PICTURES)
    wild = PICTURES.clone()
    wild[1], wild[3] = float("inf"), 1e38
    batch = batch_of(wild)
    alone = PhysicalBatch(clean.inputs, clean.targets, clean.unit, torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0]))
    expected = run(engine_with(module, 0.5, ["blocks.*"]), module, alone)
    found = run(engine_with(module, 0.5, ["blocks.*"]), module, batch)
    assert torch.isinf(found.stats.norms[[1, 3]]).all()
    assert torch.isfinite(found.total).all() and torch.allclose(found.total, expected.total, rtol=1e-5, atol=1e-7)


def test_bfloat16_autocast_is_on_in_the_second_passage_too() -> None:
    """Without it, gradients would be float32's, and off from those of the pass without checkpointing."""
    torch.manual_seed(0)
    module, batch = Encoder(), batch_of(IDS, "unequal")
    found = []
    for patterns in ((), ("blocks.*",)):
        engine = engine_with(module, 1.0, patterns, autocast=torch.bfloat16)
        found.append([run(engine, module, batch) for _ in range(2)][1])
    without, with_them = found
    assert torch.allclose(with_them.stats.norms, without.stats.norms, rtol=1e-6)
    assert float((with_them.total - without.total).norm()) <= 1e-6 * float(without.total.norm())
    wide = run(engine_with(module, 1.0, ["blocks.*"]), module, batch)
    assert float((with_them.total - wide.total).norm()) > 1e-4 * float(without.total.norm())


def test_autocast_inside_the_model_is_found_again() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = m.inner(x)
        return m.last(x.float())

    torch.manual_seed(0)
    module = Applied(forward, inner=nn.Sequential(nn.Linear(6, 6), nn.Tanh()), last=nn.Linear(6, 2))
    batch = batch_of(torch.randn(6, 4, 6))
    without, with_them = (run(engine_with(module, 1.0, p), module, batch) for p in ((), ("inner",)))
    assert torch.allclose(with_them.total, without.total, rtol=1e-6, atol=1e-9)


def test_outputs_of_every_kind() -> None:
    """A value given back as it came, one that needs no gradient, whole numbers, the same twice, a parameter, a view."""

    def inner(m: Any, x: Tensor, ids: Tensor) -> Any:
        y = m.linear(x)
        return [x, y, y, ids + 1, x.detach() * 2, m.linear.weight, y.transpose(0, 1), 3, None, torch.ones(2)]

    def forward(m: Any, x: Tensor) -> Tensor:
        ids = (x > 0).long()[..., 0]
        back, y, same, more, still, weight, view, three, none, ones = m.inner(x, ids)
        assert none is None and torch.equal(ones, torch.ones(2))
        return back + y * same + more[..., None] * y + still * F.linear(y, weight) * three + view.transpose(0, 1)

    torch.manual_seed(0)
    part, first = Several(inner), nn.Linear(6, 6)
    module = Applied(forward, inner=part, first=first)
    agree(module, batch_of(torch.randn(6, 4, 6)), ["inner"])
    behind = Applied(lambda m, x: forward(m, m.first(x)), inner=part, first=first)
    agree(behind, batch_of(torch.randn(6, 4, 6), "unequal"), ["inner"])


class Several(nn.Module):
    """A function of any arguments and of a linear map."""

    def __init__(self, apply: Callable[..., Any]) -> None:
        super().__init__()
        self.apply_to, self.linear = apply, nn.Linear(6, 6)

    def forward(self, *args: Any) -> Any:
        return self.apply_to(self, *args)


def test_a_frozen_module_in_front_is_not_walked_back_through() -> None:
    torch.manual_seed(0)
    module = Encoder(blocks=2)
    for parameter in [*module.words.parameters(), *module.places.parameters(), *module.blocks[0].parameters()]:
        parameter.requires_grad_(False)
    engine = engine_with(module, 1.0, ["blocks.*"])
    run(engine, module, batch_of(IDS))
    assert [block.calls for block in module.blocks] == [1, 3]
    agree(module, batch_of(IDS))


def test_what_comes_after_may_write_into_what_a_module_gives() -> None:
    torch.manual_seed(0)
    for inner in (nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.Unflatten(2, (2, 3)))):
        module = Applied(lambda m, x: m.last(m.inner(x).relu_().flatten(2)), inner=inner, last=nn.Linear(6, 2))
        agree(module, batch_of(torch.randn(6, 4, 6)), ["inner"])


def test_transformers_layers() -> None:
    """BERT from a tiny config: its layers take masks by keyword, among them None, and give tuples or tensors."""
    transformers = pytest.importorskip("transformers", reason="needs the extra 'finetune'")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    body = transformers.BertModel(config, add_pooling_layer=False)

    def forward(m: Any, ids: Tensor) -> Tensor:
        return m.head(m.bert(input_ids=ids, attention_mask=(ids != 0)[:, None, None, :]).last_hidden_state[:, 0])

    module = Applied(forward, bert=body, head=nn.Linear(8, 3)).train()
    ids = torch.randint(1, 30, (6, 7))
    ids[:, 5:] = 0
    agree(module, batch_of(ids, "unequal"), ["bert.encoder.layer.*"])


def test_recurrent_layers_and_attention_of_torch() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    recurrent = nn.LSTM(8, 6, batch_first=True)
    forward = lambda m, x: m.last(m.recurrent(m.layer(m.first(x)))[0])  # noqa: E731
    parts = {"first": nn.Linear(6, 8), "layer": layer, "recurrent": recurrent, "last": nn.Linear(6, 2)}
    for mode in (True, False):
        agree(Applied(forward, **parts).train(mode), batch_of(torch.randn(6, 4, 6)), ["layer", "recurrent"])


def test_an_empty_draw_and_padding_alone_add_nothing() -> None:
    module = Encoder()
    none = torch.zeros(0)
    empty = PhysicalBatch(IDS[:0], none.long(), none.long(), none)
    padding = PhysicalBatch(IDS[:3], torch.zeros(3), torch.arange(3), torch.zeros(3))
    engine = engine_with(module, 1.0, ["blocks.*"])
    assert not run(engine, module, empty).total.any() and not run(engine, module, padding).total.any()
    assert len(trainable(module)) > 10
