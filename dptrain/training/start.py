"""How a run's model begins: at random, from a folder of public weights, or from a release bundle, verified first."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dptrain.checkpoint.bundle import Bundle, load_verified
from dptrain.config import TrainConfig
from dptrain.config_finetune import FinetuneConfig
from dptrain.data.source import TOKENS, SourceInfo
from dptrain.errors import ConfigError
from dptrain.models.adapter_folder import Adapter, fill_adapter, fitted, read_adapter
from dptrain.models.adapters import layers_for
from dptrain.models.build import ModelSpec, build_model
from dptrain.models.pretrained import loader_of
from dptrain.models.reading import takes_ids
from dptrain.models.trained_part import TrainedPart, choose_trained, head_of
from dptrain.privacy.started import PUBLIC, Started, start_of

USE_OF = {"language": "language", TOKENS: "tokens"}
"""Task of the data -> what a text model is used for; any other task classifies rows."""


@dataclass(frozen=True)
class Begun:
    """A model before its first step."""

    module: nn.Module
    spec: ModelSpec
    start: Started | None
    """Where it comes from; None where it began at random."""
    part: TrainedPart | None
    """What of it is trained; None where all of a new model is, and nothing needs saying."""


def begin_model(config: TrainConfig, info: SourceInfo, spec: ModelSpec) -> Begun:
    """Builds the model, fills it with what it starts from, and chooses what is trained. Reads no private row.

    Args:
        config: of the run.
        info: public facts; the head is made for its outputs.
        spec: the model that ``config.model`` names, which a start from a bundle replaces.

    Raises:
        ConfigError: weights or bundle cannot be used, a pattern matches nothing, rows do not fit the model.
        ClaimRejected: the bundle does not verify.
    """
    settings = config.finetune
    start = settings.start
    begun = _from_folder(config, info, spec) if start is None else _from_bundle(config, info, start)
    _check_vocabulary(begun.module, info)
    if begun.start is None and not settings.is_asked:
        return begun
    return replace(begun, part=choose_trained(begun.module, settings))


def _from_folder(config: TrainConfig, info: SourceInfo, spec: ModelSpec) -> Begun:
    path = config.model.path
    loader = loader_of(spec.name, path, spec.options)
    if loader is None or path is None:
        if config.finetune.train == "lora":
            problem = f"model '{spec.name}' takes no adapters, or begins at random"
            raise ConfigError("finetune.train", "lora", problem, "choose model=hf with model.path")
        spec = _for_rows(spec, info)
        torch.manual_seed(config.seed)
        return Begun(build_model(spec), spec, None, None)
    spec = _for_rows(replace(spec, options=loader.describe(path, spec.options)), info)
    digest, name = loader.digest(path), Path(path).expanduser().absolute().name
    adapter = _adapter(spec, config.finetune, digest)
    spec = _with_adapters(spec, config.finetune, adapter)
    torch.manual_seed(config.seed)
    module = build_model(spec)
    loader.fill(module, path)
    if adapter is not None:
        fill_adapter(module.get_submodule("body"), adapter)
        name = f"{name} with adapter {adapter.name}"
        digest = hashlib.sha256(f"{digest} {adapter.digest}".encode()).hexdigest()
    return Begun(module, spec, Started(kind=PUBLIC, name=name, sha256=digest), None)


def _adapter(spec: ModelSpec, settings: FinetuneConfig, base_digest: str) -> Adapter | None:
    """The adapter that is gone on from, made for this base; None where none is given."""
    path = settings.adapter
    if path is None:
        return None
    read = read_adapter(path)
    if spec.name != "hf":
        raise ConfigError("finetune.adapter", path, f"model '{spec.name}' takes no adapters", "choose model=hf")
    with torch.device("meta"):
        body = build_model(spec).get_submodule("body")
    return fitted(read, body, path, base_digest)


def _from_bundle(config: TrainConfig, info: SourceInfo, path: str) -> Begun:
    bundle = load_verified(path, sealing_key=config.checkpoint.key)
    settings, privacy = config.finetune, config.privacy
    start = start_of(bundle.statement, settings.people, unit=privacy.unit, adjacency=privacy.adjacency)
    shape = tuple(info.input_shape)
    if bundle.spec.features != "none" and shape != bundle.spec.raw_shape:
        problem = f"takes rows of {bundle.spec.raw_shape} through a feature map, and these are {shape}"
        raise ConfigError("finetune.start", path, problem, "start from a model of the same rows")
    spec = replace(
        bundle.spec,
        raw_shape=shape,
        input_shape=bundle.spec.input_shape if bundle.spec.features != "none" else shape,
        num_outputs=info.num_outputs,
        task=info.task,
        class_names=info.class_names,
    )
    spec = _for_rows(spec, info)
    spec = _with_adapters(spec, settings)
    torch.manual_seed(config.seed)
    module = build_model(spec)
    _fill(module, bundle, path)
    return Begun(module, spec, start, None)


def _for_rows(spec: ModelSpec, info: SourceInfo) -> ModelSpec:
    """The spec of a text model with the rows' padding token, and with what the task uses it for."""
    if spec.name != "hf":
        return spec
    options, use = dict(spec.options), USE_OF.get(info.task, "classify")
    if options.get("use", "auto") not in ("auto", use):
        problem = f"does not fit data '{info.name}', whose task is {info.task}"
        raise ConfigError("model.options.use", options["use"], problem, "set it to auto")
    if info.pad is not None and options.get("pad") not in (None, info.pad):
        problem = f"data '{info.name}' fills its rows with {info.pad}"
        raise ConfigError("model.options.pad", options["pad"], problem, "leave it out, or set data.text.pad")
    return replace(spec, options=options | {"use": use} | ({} if info.pad is None else {"pad": info.pad}))


def _with_adapters(spec: ModelSpec, settings: FinetuneConfig, adapter: Adapter | None = None) -> ModelSpec:
    """The spec with adapters where they are asked for and it has none yet; their layers are named one by one."""
    if adapter is not None:
        lora = {"rank": adapter.rank, "alpha": adapter.alpha, "targets": list(adapter.factors)}
        return replace(spec, options={**spec.options, "lora": lora})
    if settings.train != "lora" or spec.options.get("lora") is not None:
        return spec
    if spec.name != "hf":
        raise ConfigError(
            "finetune.train", "lora", f"model '{spec.name}' takes no adapters", "choose model=hf, or bitfit"
        )
    with torch.device("meta"):
        body = build_model(spec).get_submodule("body")
    targets = layers_for(body, settings.targets)
    lora = {"rank": settings.rank, "alpha": settings.alpha, "targets": targets}
    return replace(spec, options={**spec.options, "lora": lora})


def _fill(module: nn.Module, bundle: Bundle, path: str) -> None:
    """Puts the bundle's weights into a model of the same kind; a head for other outputs stays as it was made."""
    own, head = module.state_dict(), head_of(module)
    new = []
    for name, value in bundle.model.state_dict().items():
        target = _target(own, name)
        if target is not None and target.shape == value.shape:
            with torch.no_grad():
                target.copy_(value)
        elif name.startswith(head):
            new.append(name)
        else:
            problem = f"its '{name}' does not fit a model of these rows"
            raise ConfigError("finetune.start", path, problem, "start from a model of the same kind of rows")
    if new:
        print(f"dptrain: note: the head is new, for other outputs than the start's: {', '.join(new)}", file=sys.stderr)


def _target(own: Mapping[str, Tensor], name: str) -> Tensor | None:
    before, _, last = name.rpartition(".")
    return own.get(name, own.get(f"{before}.base_layer.{last}"))


def _check_vocabulary(module: nn.Module, info: SourceInfo) -> None:
    """Rows of ids and a model that reads them belong together."""
    size = info.vocabulary
    if size is None:
        return
    if not takes_ids(module):
        remedy = "choose model=hf, or a model of your own with an embedding and takes_ids = True"
        raise ConfigError(
            "model", type(module).__name__, f"takes numbers, and data '{info.name}' gives token ids", remedy
        )
    known = int(getattr(module, "vocabulary", size))
    if size > known:
        problem = f"the tokeniser makes {size} ids, and the model knows {known}"
        raise ConfigError("data.text.tokenizer", info.name, problem, "take the tokeniser of the model's own folder")
