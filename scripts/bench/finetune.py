"""Ways of fine-tuning MiniLM-L6 as workloads: random weights of its shape, rows of 128 tokens, some of them padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .workloads import VOCABULARY, Made, Workload

SHAPE: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
TOKENS = 128


def minilm(train: str) -> Callable[[], nn.Module]:
    """The model of ``model=hf`` with what ``finetune.train`` trains."""

    def build() -> nn.Module:
        from dptrain.config_finetune import FinetuneConfig
        from dptrain.models.adapters import layers_for
        from dptrain.models.hf import hf
        from dptrain.models.trained_part import choose_trained

        lora = None
        if train == "lora":
            with torch.device("meta"):
                plain = hf((TOKENS,), 2, architecture=SHAPE)
            lora = {"rank": 8, "alpha": 16.0, "targets": layers_for(plain.get_submodule("body"), [])}
        module = hf((TOKENS,), 2, architecture=SHAPE, lora=lora)
        choose_trained(module, FinetuneConfig(train=train))
        return module

    return build


def padded(rows: int, generator: torch.Generator) -> Made:
    """Random tokens, half to all of a row, and one of two classes."""
    ids = torch.randint(1, VOCABULARY, (rows, TOKENS), generator=generator)
    lengths = torch.randint(TOKENS // 2, TOKENS + 1, (rows, 1), generator=generator)
    ids = torch.where(torch.arange(TOKENS) < lengths, ids, 0)
    return ids, torch.randint(0, 2, (rows,), generator=generator)


def features(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What a probe's step sees: features that were computed before."""
    return torch.randn(rows, SHAPE["hidden_size"], generator=generator), torch.arange(rows) % 2


FINETUNE = {
    f"minilm_{train}": Workload(
        f"MiniLM-L6, {train}, T128, B{256 if train == 'probe' else 8}",
        minilm(train),
        256 if train == "probe" else 8,
        features if train == "probe" else padded,
        adam=True,
        origin=("word_embeddings", "position_embeddings", "token_type_embeddings") if train == "full" else (),
    )
    for train in ("full", "lora", "bitfit", "last_k", "head", "probe")
}
