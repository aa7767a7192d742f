"""A peft folder of LoRA adapters as a start: read as data, and held against the base before anything is spent."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dptrain.errors import ConfigError
from dptrain.untrusted_json import NotReadable, read_untrusted

FIELD = "finetune.adapter"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
NOT_READ = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform")
"""Settings of peft under which factors mean something else; any of them set is refused."""
WRITTEN = "give the folder that peft's save_pretrained() or dptrain export adapter=kept wrote"
OTHER_BASE = "give the base that the adapter was made for as model.path"


@dataclass(frozen=True)
class Adapter:
    """The factors of a folder, by the layer that they stand beside."""

    name: str
    digest: str
    """SHA-256 of both files."""
    rank: int
    alpha: float
    base: str | None
    """SHA-256 of the base that it was made for, where the file says it."""
    factors: Mapping[str, tuple[Tensor, Tensor]]
    """Layer -> A (rank, in), B (out, rank)."""


def read_adapter(path: str) -> Adapter:
    """Reads a folder; nothing of it is run.

    Raises:
        ConfigError: a file is missing, unsafe or damaged, it is no LoRA of the plain kind, or it is a private release,
            whose promise an adapter folder cannot carry on.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ConfigError(FIELD, path, "no such folder", WRITTEN)
    if not (folder / WEIGHTS).is_file():
        unsafe = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth"))
        if unsafe:
            remedy = f"'dptrain convert weights={folder / unsafe[0]} into={folder / WEIGHTS}' takes its tensors alone"
            problem = f"holds {unsafe[0]}, which can run code when it is read, and no {WEIGHTS}"
            raise ConfigError(FIELD, path, problem, remedy)
        raise ConfigError(FIELD, path, f"lacks {WEIGHTS}", WRITTEN)
    rank, alpha = _settings(folder, path)
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as opened:
            facts = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ConfigError(FIELD, path, f"{WEIGHTS} cannot be read ({type(error).__name__})", WRITTEN) from error
    if "dptrain.epsilon" in facts:
        remedy = "start from its release bundle, which is verified and carries on: finetune.start=RUN"
        raise ConfigError(FIELD, path, "is a private release, and its promise goes on with its bundle alone", remedy)
    whole = hashlib.sha256((folder / CONFIG).read_bytes() + (folder / WEIGHTS).read_bytes()).hexdigest()
    base = facts.get("dptrain.base.sha256") or None
    return Adapter(folder.absolute().name, whole, rank, alpha, base, _factors(tensors, path, rank))


def _settings(folder: Path, path: str) -> tuple[int, float]:
    """Rank and alpha."""
    try:
        given = read_untrusted(folder / CONFIG)
    except NotReadable as error:
        raise ConfigError(FIELD, path, f"{CONFIG}: {error}", WRITTEN) from error
    if not isinstance(given, dict) or given.get("peft_type") != "LORA":
        raise ConfigError(FIELD, path, f"{CONFIG} describes no LoRA", WRITTEN)
    for name in NOT_READ:
        if given.get(name):
            raise ConfigError(FIELD, path, f"sets {name}, which is not read here", "give a plain LoRA")
    if given.get("bias", "none") != "none":
        raise ConfigError(FIELD, path, "trains biases too, which is not read here", "give a plain LoRA")
    rank, alpha = given.get("r"), given.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= 1024 or not isinstance(alpha, int | float) or not 0 < alpha < 1e6:
        raise ConfigError(FIELD, path, f"{CONFIG} has r={rank} and lora_alpha={alpha}", WRITTEN)
    return rank, float(alpha)


def _factors(tensors: Mapping[str, Tensor], path: str, rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    sides: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        layer, _, rest = name.removeprefix(PREFIX).rpartition(".lora_")
        if rest not in ("A.weight", "B.weight") or value.dim() != 2 or not value.is_floating_point():
            raise ConfigError(FIELD, path, f"holds '{name[:80]}', no factor of a linear layer", "give a plain LoRA")
        sides.setdefault(layer, {})[rest[0]] = value
    for layer, found in sides.items():
        if set(found) != {"A", "B"} or found["A"].shape[0] != rank or found["B"].shape[1] != rank:
            raise ConfigError(FIELD, path, f"the factors of '{layer[:80]}' do not make rank {rank}", WRITTEN)
    if not sides:
        raise ConfigError(FIELD, path, "holds no factors", WRITTEN)
    return {layer: (found["A"], found["B"]) for layer, found in sides.items()}


def fitted(adapter: Adapter, body: nn.Module, path: str, base_digest: str) -> Adapter:
    """The same adapter with layers named as the body names them.

    Args:
        adapter: of ``read_adapter``.
        body: the base; on torch's meta device will do.
        path: of the adapter, for errors.
        base_digest: ``digest_of`` the base.

    Raises:
        ConfigError: it was made for another base: by the digest it names, or by a layer that is not there or of another
            shape.
    """
    if adapter.base is not None and adapter.base != base_digest:
        problem = f"was made for another base (SHA-256 {adapter.base[:12]}..., not {base_digest[:12]}...)"
        raise ConfigError(FIELD, path, problem, OTHER_BASE)
    layers = dict(body.named_modules())
    named = {}
    for name, (a, b) in adapter.factors.items():
        own = name if name in layers else name.partition(".")[2]  # peft counts the model around the body
        weight: Any = getattr(layers.get(own), "weight", None)
        if weight is None or weight.dim() != 2:
            raise ConfigError(
                FIELD, path, f"was made for another base: this one has no layer '{name[:80]}'", OTHER_BASE
            )
        shape = tuple(weight.shape)[::-1] if type(layers[own]).__name__ == "Conv1D" else tuple(weight.shape)
        if shape != (b.shape[0], a.shape[1]):
            problem = f"was made for another base: '{name[:80]}' is {shape} here and {(b.shape[0], a.shape[1])} there"
            raise ConfigError(FIELD, path, problem, OTHER_BASE)
        named[own] = (a, b)
    return Adapter(adapter.name, adapter.digest, adapter.rank, adapter.alpha, adapter.base, named)


def fill_adapter(body: nn.Module, adapter: Adapter) -> None:
    """Puts the factors into adapters that ``add_lora`` made for these layers, in place."""
    own = body.state_dict()
    with torch.no_grad():
        for layer, (a, b) in adapter.factors.items():
            own[f"{layer}.lora_A.default.weight"].copy_(a)
            own[f"{layer}.lora_B.default.weight"].copy_(b)
