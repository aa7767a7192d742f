"""Settings of fine-tuning: where a model starts, and which part of it is trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from dptrain.errors import ConfigError
from dptrain.ranges import choice, number

WAYS = ("full", "lora", "bitfit", "last_k", "head", "probe")


@dataclass
class FinetuneConfig:
    """Which part of a model is trained, chosen by name, and the bundle that it may start from."""

    train: str = "full"
    """full (everything), lora (adapters of low rank and the head), bitfit (biases and the head), last_k (the last
    blocks and the head), head, or probe (the head, on features of the frozen rest that are computed once)."""
    last_k: int = 1
    """With train=last_k: blocks that are trained, at least 1."""
    also: list[str] = field(default_factory=list)
    """Patterns (fnmatch) of parameter names that are trained besides; each must match."""
    never: list[str] = field(default_factory=list)
    """Patterns (fnmatch) of parameter names that are left as they are; each must match."""
    rank: int = 8
    """With train=lora: rank of the adapters, in [1, 1024]."""
    alpha: float = 16.0
    """With train=lora: adapters are scaled by alpha / rank; above 0."""
    targets: list[str] = field(default_factory=list)
    """With train=lora: patterns (fnmatch) of the layers that get an adapter; empty: query and value of attention."""
    adapter: str | None = None
    """With train=lora and model.path: a folder of LoRA adapters (peft, safetensors) that training goes on from, made
    for that base; its rank, alpha and layers are taken. Its weights are taken as public, as the base's are."""
    start: str | None = None
    """A release bundle (or its run folder) that training starts from; it is verified first. Its model is taken as it
    is, and ``model.*`` is not read."""
    people: str = "unknown"
    """Who is in the rows that the start was trained on: same, unknown (counted as the same: both epsilons add up) or
    other (declared: nobody is in both)."""

    def __post_init__(self) -> None:
        choice("finetune.train", self.train, list(WAYS))
        number("finetune.last_k", self.last_k, low=1)
        number("finetune.rank", self.rank, low=1, high=1024)
        number("finetune.alpha", self.alpha, low=0, low_open=True)
        choice("finetune.people", self.people, ["same", "unknown", "other"])
        if self.people != "unknown" and self.start is None:
            raise ConfigError(
                "finetune.people", self.people, "is about a start, and none is given", "set finetune.start=RUN"
            )
        if self.adapter is not None and (self.train != "lora" or self.start is not None or self.targets):
            problem = "goes with finetune.train=lora on model.path, without finetune.start and finetune.targets"
            raise ConfigError("finetune.adapter", self.adapter, problem, "leave the others out")
        if self.targets and self.train != "lora":
            raise ConfigError("finetune.targets", self.targets, "are for adapters", "set finetune.train=lora")

    @property
    def is_asked(self) -> bool:
        """Whether anything but training the whole of a new model is asked for."""
        return self != FinetuneConfig()
