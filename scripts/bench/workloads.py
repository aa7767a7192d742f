"""The workloads of the step benchmark: models in plain torch, made-up data, a loss a row, an optimizer.

Parameters live in Linear, Conv2d, Embedding, LayerNorm and GroupNorm alone and every layer sees the batch first, so
that every peer can run them. Further models are in ``further``; sweeps of one size are in ``growth``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY = 30_522
Made = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Workload:
    """One model with its batch.

    Attributes:
        what: one line for people.
        build: makes the model; called under a fixed seed.
        batch: rows of the physical batch.
        data: rows and a generator -> (inputs (R, ...), targets (R,) or (R, T)).
        adam: AdamW, as transformers are trained; SGD otherwise.
        peer_build: the same function built of layers that Opacus has rules for, where torch's own have none.
        origin: parts of the names of the parameters that fastDP's ghost differentiation must keep, so that a gradient
            passes through every trainable layer: of each one that no other trainable layer feeds, the cheapest.
    """

    what: str
    build: Callable[[], nn.Module]
    batch: int
    data: Callable[[int, torch.Generator], Made]
    adam: bool = False
    peer_build: Callable[[], nn.Module] | None = None
    origin: tuple[str, ...] = ()

    def model(self, for_peer: bool = False) -> nn.Module:
        """The model in train mode; the same weights in every process."""
        torch.manual_seed(0)
        build = self.peer_build if for_peer and self.peer_build is not None else self.build
        return build().train()

    def rows(self, count: int | None = None) -> Made:
        """The batch, or its first ``count`` rows."""
        inputs, targets = self.data(self.batch, torch.Generator().manual_seed(1))
        return inputs[:count].contiguous(), targets[:count].contiguous()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """A fresh optimizer over what is trained; steps so small that losses stay where they are."""
        moving = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.AdamW(moving, lr=1e-5) if self.adam else torch.optim.SGD(moving, lr=1e-4)


def row_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of each row (R,): of its class, or the mean over its tokens or pixels."""
    if targets.dim() == 1:
        return F.cross_entropy(outputs, targets, reduction="none")
    if outputs.dim() == 3:  # (R, T, V)
        flat = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
        return flat.view(targets.shape).mean(1)
    return F.cross_entropy(outputs, targets, reduction="none").flatten(1).mean(1)


def mean_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean of ``row_loss``, as plain training computes it: in one call, reduced inside."""
    if outputs.dim() == 3:
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())
    return F.cross_entropy(outputs, targets)


def small_cnn() -> nn.Module:
    """Two 5x5 convolutions of 16 and 32 channels and two linear layers, for 28x28 pictures: 114,314 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 49, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


class PreNormBlock(nn.Module):
    """Norm, ReLU, convolution, twice, beside a shortcut (Zagoruyko and Komodakis 2016, with GroupNorm)."""

    def __init__(self, wide_in: int, wide: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(16, wide_in)
        self.conv1 = nn.Conv2d(wide_in, wide, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(16, wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, bias=False)
        changes = stride > 1 or wide_in != wide
        self.shortcut = nn.Conv2d(wide_in, wide, 1, stride=stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        left = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return left + (x if self.shortcut is None else self.shortcut(active))


def wide_resnet(depth: int = 16, widen: int = 4) -> nn.Module:
    """Wide ResNet for 32x32 pictures, GroupNorm(16) for BatchNorm."""
    width, layers = 16, [nn.Conv2d(3, 16, 3, padding=1, bias=False)]
    blocks: list[nn.Module] = []
    for group in range(3):
        for place in range((depth - 4) // 6):
            wide = 16 * widen * 2**group
            blocks.append(PreNormBlock(width, wide, 2 if group and not place else 1))
            width = wide
    head = [nn.GroupNorm(16, width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]
    return nn.Sequential(*layers, *blocks, *head)


class SelfAttention(nn.Module):
    """Multi-head attention with four separate projections; adapters of rank ``rank`` beside query and value."""

    def __init__(self, width: int, heads: int, causal: bool, rank: int) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.adapters = nn.ModuleDict()
        for name in ("query", "value") if rank else ():
            self.adapters[f"{name}_down"] = nn.Linear(width, rank, bias=False)
            self.adapters[f"{name}_up"] = nn.Linear(rank, width, bias=False)

    def _project(self, name: str, x: Tensor) -> Tensor:
        y = getattr(self, name)(x)
        if f"{name}_up" in self.adapters:
            y = y + self.adapters[f"{name}_up"](self.adapters[f"{name}_down"](x))
        return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self._project(name, x) for name in ("query", "key", "value"))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Pre-norm attention and a fourfold feed-forward part."""

    def __init__(self, width: int, heads: int, causal: bool = False, rank: int = 0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, causal, rank)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.narrow(F.gelu(self.widen(self.norm2(x))))


class Transformer(nn.Module):
    """Token and position embeddings, blocks, and a classifier of the first token or a next-token head.

    Args:
        head: ``classes`` (2 outputs), ``tokens`` (a head of its own) or ``tied`` (the embedding's weight).
        rank: adapters of this rank are all that is trained; 0 trains everything.
    """

    def __init__(self, layers: int, head: str, width: int = 384, tokens: int = 128, rank: int = 0) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, width)
        self.places = nn.Embedding(tokens, width)
        causal = head != "classes"
        self.blocks = nn.ModuleList(TransformerBlock(width, max(1, width // 32), causal, rank) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False) if causal else nn.Linear(width, 2)
        for matrix in (p for p in self.parameters() if p.dim() == 2):
            nn.init.normal_(matrix, std=0.02)
        if head == "tied":
            self.head.weight = self.words.weight
        if rank:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_("adapters" in name)
        self.causal = causal

    def forward(self, ids: Tensor) -> Tensor:
        # Places are looked up for every row: an engine that takes the first dimension for the batch needs them so.
        places = torch.arange(ids.shape[1], device=ids.device).repeat(len(ids), 1)
        hidden = self.words(ids) + self.places(places)
        for block in self.blocks:
            hidden = block(hidden)
        hidden = self.norm(hidden)
        return self.head(hidden if self.causal else hidden[:, 0])


def mlp(*widths: int) -> nn.Module:
    """Linear layers of these widths with ReLU between them."""
    layers: list[nn.Module] = []
    for left, right in pairwise(widths):
        layers += [nn.Linear(left, right), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def pictures(*shape: int, classes: int = 10) -> Callable[[int, torch.Generator], Made]:
    """Random pictures (or vectors) and classes."""
    return lambda rows, g: (
        torch.randn(rows, *shape, generator=g),
        torch.randint(0, classes, (rows,), generator=g),
    )


def sentences(tokens: int, vocabulary: int = VOCABULARY) -> Callable[[int, torch.Generator], Made]:
    """Random tokens and one of two classes."""
    return lambda rows, g: (
        torch.randint(0, vocabulary, (rows, tokens), generator=g),
        torch.randint(0, 2, (rows,), generator=g),
    )


def running_text(tokens: int) -> Callable[[int, torch.Generator], Made]:
    """Random tokens and, as targets, the token after each."""

    def make(rows: int, g: torch.Generator) -> Made:
        text = torch.randint(0, VOCABULARY, (rows, tokens + 1), generator=g)
        return text[:, :-1].contiguous(), text[:, 1:].contiguous()

    return make


_EMBEDDINGS = ("words", "places")

WORKLOADS = {
    "a": Workload("small CNN, B256", small_cnn, 256, pictures(1, 28, 28), origin=("0.bias",)),
    "b": Workload("WRN-16-4 GroupNorm, B64", wide_resnet, 64, pictures(3, 32, 32), origin=("0.weight",)),
    "c": Workload(
        "encoder 6x384, T128, B16", lambda: Transformer(6, "classes"), 16, sentences(128), True, None, _EMBEDDINGS
    ),
    "d": Workload(
        "encoder 6x384, T128, B16, LoRA r8",
        lambda: Transformer(6, "classes", rank=8),
        16,
        sentences(128),
        adam=True,
        origin=("blocks.0.attention.adapters.query_down", "blocks.0.attention.adapters.value_down"),
    ),
    "e": Workload(
        "GPT 4x384, T128, B8, untied", lambda: Transformer(4, "tokens"), 8, running_text(128), True, None, _EMBEDDINGS
    ),
    "e_tied": Workload(
        "GPT 4x384, T128, B8, tied", lambda: Transformer(4, "tied"), 8, running_text(128), True, None, _EMBEDDINGS
    ),
    "f": Workload(
        "MLP 784-2048-2048-10, B512", lambda: mlp(784, 2048, 2048, 10), 512, pictures(784), origin=("0.bias",)
    ),
    "tiny": Workload("MLP 20-16-10, B32, to try things", lambda: mlp(20, 16, 10), 32, pictures(20), origin=("0.bias",)),
}


def growth(axis: str) -> Iterator[tuple[str, Workload]]:
    """The sweep of one size by name, eightfold and more; the sizes that a step costs by stay in a few seconds."""
    if axis == "T":  # 2,048 tokens a batch throughout
        for t in (64, 128, 256, 512, 1024):
            build = lambda t=t: Transformer(2, "classes", tokens=t)  # noqa: E731
            yield f"T={t}", Workload(f"encoder 2x384, T{t}, B{2048 // t}", build, 2048 // t, sentences(t), adam=True)
    elif axis == "B":
        for b in (8, 32, 128, 512, 1024):
            yield f"B={b}", Workload(f"small CNN, B{b}", small_cnn, b, pictures(1, 28, 28))
    elif axis == "width":
        for w in (96, 192, 384, 768):
            build = lambda w=w: Transformer(2, "classes", width=w)  # noqa: E731
            yield f"width={w}", Workload(f"encoder 2x{w}, T128, B8", build, 8, sentences(128), adam=True)
        for w in (512, 1024, 2048, 4096):
            build = lambda w=w: mlp(784, w, w, 10)  # noqa: E731
            yield f"width={w} mlp", Workload(f"MLP 784-{w}-{w}-10, B512", build, 512, pictures(784))
    elif axis == "depth":
        for n in (1, 2, 4, 8):
            build = lambda n=n: Transformer(n, "classes")  # noqa: E731
            yield f"depth={n}", Workload(f"encoder {n}x384, T128, B8", build, 8, sentences(128), adam=True)
