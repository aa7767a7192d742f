"""Adapters of low rank (LoRA), by ``peft``: which layers get one, and what they hold.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"; under privacy Yu et al. 2022, "Differentially
private fine-tuning of language models". An adapter starts as nothing (its second factor is zero), so that the first
outputs are the base's own.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence
from typing import Any

from torch import nn

from dptrain.errors import ConfigError

USUAL = ("*.query", "*.value", "*.q_lin", "*.v_lin", "*.q_proj", "*.v_proj", "*.c_attn", "*.query_key_value")
"""Query and value of attention, by the names that families give them."""


def library() -> Any:
    """The module ``peft``.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        problem = f"needs peft, which cannot be imported ({error})"
        raise ConfigError("finetune.train", "lora", problem, "pip install 'dptrain[finetune]'") from error
    return peft


def layers_for(body: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the linear layers that match; with no patterns, query and value of attention.

    Raises:
        ConfigError: a pattern matches nothing.
    """
    names = [name for name, layer in body.named_modules() if _is_linear(layer)]
    if not patterns:
        found = [name for name in names if any(fnmatch.fnmatchcase(f".{name}", p) for p in USUAL)]
        if not found:
            raise ConfigError("finetune.targets", "[]", "no layer is called query or value", suggest_names("", names))
        return found
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ConfigError("finetune.targets", pattern, "matches no linear layer", suggest_names(pattern, names))
    return [name for name in names if any(fnmatch.fnmatchcase(name, p) for p in patterns)]


def suggest_names(pattern: str, names: Sequence[str]) -> str:
    """The nearest end or beginning of a name, numbers of layers left out: a whole model's names would fill a page.

    >>> suggest_names("haed.*", ["body.layer.0.query.weight", "head.weight"])
    "did you mean 'head.*'?"
    """
    short = list(dict.fromkeys(".".join("*" if part.isdigit() else part for part in n.split(".")) for n in names))
    plain = pattern.replace("*", "").strip(".")
    if plain:
        parts = plain.count(".") + 1
        found = {name: name for name in short}
        found |= {".".join(name.split(".")[:parts]): f"{'.'.join(name.split('.')[:parts])}.*" for name in short[::-1]}
        found |= {".".join(name.split(".")[-parts:]): f"*.{'.'.join(name.split('.')[-parts:])}" for name in short[::-1]}
        found |= {name: name for name in short}
        near = difflib.get_close_matches(plain, found, n=1, cutoff=0.6)
        if near:
            return f"did you mean '{found[near[0]]}'?"
    return "names are " + ", ".join(short[:12])


def add_lora(module: nn.Module, rank: int, alpha: float, targets: Sequence[str]) -> None:
    """Puts adapters beside layers of the model's body, in place; base weights stay under ``base_layer``.

    Args:
        module: has a ``body``.
        rank: of each adapter.
        alpha: adapters are scaled by alpha / rank.
        targets: full names of layers of the body.

    Raises:
        ConfigError: peft is not installed, or a layer cannot have an adapter.
    """
    peft, body = library(), module.get_submodule("body")
    turned = any(type(body.get_submodule(name)).__name__ == "Conv1D" for name in targets)
    settings = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(targets),
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=turned,
    )
    try:
        peft.inject_adapter_in_model(settings, body)
    except ValueError as error:
        raise ConfigError("finetune.targets", list(targets)[:3], str(error)[:300], "choose linear layers") from error


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"
