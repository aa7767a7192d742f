"""Which part of a model is trained: chosen by way and by name, and said with counts."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from dptrain.config_finetune import FinetuneConfig
from dptrain.errors import ConfigError
from dptrain.models.adapters import suggest_names

HEADS = ("head", "classifier", "pre_classifier", "score", "fc")


@dataclass(frozen=True)
class TrainedPart:
    """What of a model is trained."""

    names: tuple[str, ...]
    """Of the tensors that are."""
    tensors: int
    """Of the whole model."""
    numbers: int
    """In the tensors that are trained."""
    all_numbers: int

    def __str__(self) -> str:
        """
        >>> str(TrainedPart(("head.weight", "head.bias"), 103, 770, 22_700_000))
        'trains 2 of 103 tensors, 770 of 22.7 million numbers: head.weight, head.bias'
        """
        short = list(dict.fromkeys(".".join("*" if p.isdigit() else p for p in n.split(".")) for n in self.names))
        listed = ", ".join(short[:4]) + (f" and {len(short) - 4} more kinds" if len(short) > 4 else "")
        counts = (
            f"{len(self.names)} of {self.tensors} tensors, {_many(self.numbers)} of {_many(self.all_numbers)} numbers"
        )
        return f"trains {counts}: {listed}"


def choose_trained(module: nn.Module, settings: FinetuneConfig) -> TrainedPart:
    """Sets ``requires_grad`` of every parameter by the settings, in place.

    Args:
        module: with adapters already, where some are trained.
        settings: the way, and patterns besides.

    Raises:
        ConfigError: a pattern matches nothing, the model has not what the way trains, or nothing is left to train.
    """
    if settings.train == "probe" and (not hasattr(module, "mapped") or getattr(module, "head", None) is None):
        problem = f"{type(module).__name__} has no features that could be computed once"
        raise ConfigError("finetune.train", "probe", problem, "set finetune.train=head")
    names = [name for name, _ in module.named_parameters()]
    chosen = {name for name in names if _by_way(module, names, settings)(name)}
    for field, patterns in (("also", settings.also), ("never", settings.never)):
        for pattern in patterns:
            found = fnmatch.filter(names, pattern)
            if not found:
                remedy = suggest_names(pattern, names)
                raise ConfigError(f"finetune.{field}", pattern, "matches no parameter's name", remedy)
            chosen = chosen | set(found) if field == "also" else chosen - set(found)
    if not chosen:
        raise ConfigError("finetune.never", settings.never, "leaves nothing to train", "leave some out")
    if settings.train == "probe" and any(not name.startswith(head_of(module)) for name in chosen):
        remedy = "set finetune.train=head, which does not keep features"
        raise ConfigError("finetune.also", settings.also, "a probe's features are computed once", remedy)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in chosen)
    moving = [p for p in module.parameters() if p.requires_grad]
    return TrainedPart(
        tuple(name for name in names if name in chosen),
        len(names),
        sum(p.numel() for p in moving),
        sum(p.numel() for p in module.parameters()),
    )


def _by_way(module: nn.Module, names: Sequence[str], settings: FinetuneConfig) -> Callable[[str], bool]:
    head = head_of(module)
    way = settings.train
    if way == "full":
        return lambda name: True
    if way == "lora":
        if not any("lora_" in name for name in names):
            raise ConfigError("finetune.train", "lora", "this model takes no adapters", "choose model=hf, or bitfit")
        return lambda name: "lora_" in name or name.startswith(head)
    if way == "bitfit":
        if not any(_is_bias(name) and not name.startswith(head) for name in names):
            raise ConfigError("finetune.train", "bitfit", "the model has no biases", "set finetune.train=lora")
        return lambda name: _is_bias(name) or name.startswith(head)
    if way == "last_k":
        last = _last_blocks(module, settings.last_k)
        return lambda name: name.startswith((*last, *head))
    return lambda name: name.startswith(head)


def head_of(module: nn.Module) -> tuple[str, ...]:
    """How the names of the head's parameters begin: what a new task needs anew.

    A model says so itself (``head_parts``); else it is a child called head, classifier, score or fc, of the model or of
    its body; else the last linear layer.
    """
    told = getattr(module, "head_parts", None)
    if told is not None:
        return told
    children = [(name, child) for name, child in module.named_children() if child is not None]
    for place, inner in (("", module), *((f"{name}.", child) for name, child in children if name == "body")):
        found = [name for name, _ in inner.named_children() if name in HEADS]
        if found:
            return tuple(f"{place}{name}." for name in found)
    linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise ConfigError("finetune.train", "", "the model has no head that could be told", "set finetune.train=full")
    return (f"{linear[-1]}.",)


def _last_blocks(module: nn.Module, count: int) -> list[str]:
    """Names of the last blocks of the longest list of layers, and of norms behind it."""
    lists = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.ModuleList)]
    if not lists:
        raise ConfigError(
            "finetune.train", "last_k", "the model keeps its blocks in no list", "name them: finetune.also"
        )
    name, blocks = max(lists, key=lambda pair: len(pair[1]))
    if count > len(blocks):
        raise ConfigError("finetune.last_k", count, f"the model has {len(blocks)} blocks", "choose fewer")
    parent = name.rpartition(".")[0]
    prefix = f"{parent}." if parent else ""
    siblings = list(module.get_submodule(parent).named_children()) if parent else list(module.named_children())
    own = name.rpartition(".")[2]
    behind = [n for n, _ in siblings[[n for n, _ in siblings].index(own) + 1 :] if "norm" in n.lower() or "ln" in n]
    return [f"{name}.{place}." for place in range(len(blocks) - count, len(blocks))] + [f"{prefix}{n}." for n in behind]


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2] == "bias"


def _many(count: int) -> str:
    if count >= 1_000_000:
        return f"{count / 1e6:.1f} million"
    return f"{count:,}"
