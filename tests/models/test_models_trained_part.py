"""What is trained is chosen by way and by name, counted, and refused where a name means nothing."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

from dptrain.config_finetune import FinetuneConfig
from dptrain.errors import ConfigError
from dptrain.models.trained_part import TrainedPart, choose_trained


class Small(nn.Module):
    """Three blocks of a bias and a weight, a norm behind them, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Module()
        self.body.embed = nn.Embedding(10, 4)
        self.body.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.body.last_norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)

    def mapped(self, rows: Tensor) -> Tensor:
        """Features of rows, (B, 4)."""
        return self.body.get_submodule("embed")(rows).mean(1)


HEAD = {"head.weight", "head.bias"}
NORM = {"body.last_norm.weight", "body.last_norm.bias"}


def chosen(**settings: Any) -> set[str]:
    module = Small()
    part = choose_trained(module, FinetuneConfig(**settings))
    moving = {name for name, p in module.named_parameters() if p.requires_grad}
    assert set(part.names) == moving and part.tensors == 11
    assert part.numbers == sum(p.numel() for p in module.parameters() if p.requires_grad)
    return moving


def test_ways() -> None:
    everything = {name for name, _ in Small().named_parameters()}
    assert chosen() == everything
    assert chosen(train="head") == chosen(train="probe") == HEAD
    assert chosen(train="bitfit") == {name for name in everything if name.endswith("bias")} | HEAD
    assert chosen(train="last_k", last_k=1) == {"body.blocks.2.weight", "body.blocks.2.bias"} | NORM | HEAD
    assert chosen(train="last_k", last_k=3) == everything - {"body.embed.weight"}


def test_patterns_add_and_take_away() -> None:
    assert chosen(train="head", also=["*.embed.*"]) == HEAD | {"body.embed.weight"}
    assert chosen(train="full", never=["body.*"]) == HEAD
    assert chosen(train="head", also=["body.blocks.*"], never=["*.bias"]) == {
        "head.weight",
        *(f"body.blocks.{place}.weight" for place in range(3)),
    }


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"also": ["body.blokcs.*.weight"]}, r"also=body.blokcs.\*.weight: matches no parameter's name; did you mean"),
        ({"never": ["encoder"]}, "never=encoder: matches no parameter's name"),
        ({"never": ["*"]}, "leaves nothing to train"),
        ({"train": "last_k", "last_k": 4}, "the model has 3 blocks"),
        ({"train": "lora"}, "takes no adapters"),
        ({"train": "probe", "also": ["body.embed.*"]}, "features are computed once"),
    ],
)
def test_what_means_nothing_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        choose_trained(Small(), FinetuneConfig(**settings))


def test_models_without_what_a_way_trains() -> None:
    bare = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="has no biases"):
        choose_trained(bare, FinetuneConfig(train="bitfit"))
    with pytest.raises(ConfigError, match="in no list"):
        choose_trained(bare, FinetuneConfig(train="last_k"))
    assert choose_trained(bare, FinetuneConfig(train="head")).names == ("1.weight", "1.bias")


def test_it_is_said_with_counts() -> None:
    part = TrainedPart(("head.weight", "head.bias", "b.0.c.bias", "b.1.c.bias"), 103, 1_154, 22_713_986)
    expected = "trains 4 of 103 tensors, 1,154 of 22.7 million numbers: head.weight, head.bias, b.*.c.bias"
    assert str(part) == expected


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train": "lora+"}, "did you mean 'lora'"),
        ({"rank": 0}, "finetune.rank"),
        ({"alpha": 0.0}, "finetune.alpha"),
        ({"people": "other"}, "set finetune.start"),
        ({"targets": ["*.query"]}, "set finetune.train=lora"),
    ],
)
def test_settings_are_in_range(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FinetuneConfig(**settings)
