"""Models of ``transformers`` from a folder on this machine: weights in safetensors, nothing fetched, no code of others.

    model=hf model.path=data/models/minilm

A row is a sequence of token ids (T,) that ends in the padding token. The mask is made of the row itself, so that a row
says alone how long it is; attention and pooling see its own tokens only. Dropout is set to 0 throughout: randomness in
training would tie units together (``models/probe.py``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dptrain.errors import ConfigError, suggest
from dptrain.models.adapters import add_lora
from dptrain.models.options import truth, whole_number
from dptrain.models.text_heads import LanguageModel, TextClassifier, TokenClassifier
from dptrain.registry import models
from dptrain.untrusted_json import NotReadable, read_untrusted


@dataclass(frozen=True)
class Family:
    """What is known of one kind of model."""

    causal: bool
    """A token sees those before it only."""
    extra_places: int = 0
    """Places of its position table that no token can take."""


FAMILIES = {
    "bert": Family(False),
    "distilbert": Family(False),
    "electra": Family(False),
    "roberta": Family(False, extra_places=2),
    "xlm-roberta": Family(False, extra_places=2),
    "gpt2": Family(True),
    "gpt_neox": Family(True),
    "llama": Family(True),
    "qwen2": Family(True),
}
"""Kinds of models that were tried and are built, from a folder or from a bundle; any other is refused."""
UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".pkl")
FOREIGN = ("auto_map", "trust_remote_code", "quantization_config", "custom_pipelines")
"""Fields of a config that name code or another form of weights."""
LEFT_OUT = (
    *("transformers_version", "architectures", "torch_dtype", "dtype", "name_or_path", "problem_type", "use_cache"),
    *("id2label", "label2id", "num_labels", "task_specific_params", "finetuning_task"),
)
"""Fields of a config that are of one checkpoint, task or machine, rather than of the model."""


def library(field: str = "model") -> Any:
    """The module ``transformers``, quiet.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        problem = f"needs transformers, which cannot be imported ({error})"
        raise ConfigError(field, "hf", problem, "pip install 'dptrain[finetune]'") from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def weight_files(path: str | Path) -> list[Path]:
    """The safetensors files of a folder.

    Raises:
        ConfigError: there is no such folder, or it holds weights of unsafe kinds only.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        remedy = "give a folder on this machine; nothing is fetched (scripts/fetch_data.sh gets the shipped ones)"
        raise ConfigError("model.path", path, "no such folder", remedy)
    found = sorted(folder.glob("*.safetensors"))
    if found:
        return found
    unsafe = sorted(file.name for file in folder.iterdir() if file.suffix in UNSAFE)
    if unsafe:
        problem = f"holds {unsafe[0]}, which can run code when it is read, and no safetensors"
        remedy = f"'dptrain convert weights={folder / unsafe[0]}' takes its tensors and runs none of it"
        if len(unsafe) > 1 or unsafe[0].endswith((".h5", ".msgpack", ".pkl")):
            remedy = "where its maker is trusted, load it with its library and save_pretrained() it as safetensors"
        raise ConfigError("model.path", path, problem, remedy)
    raise ConfigError("model.path", path, "holds no *.safetensors", "give the folder that save_pretrained() wrote")


def read_architecture(path: str | Path) -> dict[str, Any]:
    """The values of a folder's ``config.json`` that describe the model: plain data, no code, no dropout.

    Raises:
        ConfigError: it cannot be read, names code, or is of a kind that was not tried.
    """
    file = Path(path).expanduser() / "config.json"
    try:
        given = read_untrusted(file)
    except NotReadable as error:
        raise ConfigError("model.path", file, str(error), "give the folder that save_pretrained() wrote") from error
    if not isinstance(given, dict):
        raise ConfigError("model.path", file, "describes no model", "give the folder that save_pretrained() wrote")
    return checked_architecture(given, "model.path", file)


def checked_architecture(given: Mapping[str, Any], field: str, where: object) -> dict[str, Any]:
    """The values that describe the model, as ``read_architecture``; ``given`` may be a stranger's."""
    for name in FOREIGN:
        if name in given:
            remedy = "use a model that transformers itself knows, saved in full precision"
            raise ConfigError(field, where, f"its config names '{name}': code or weights of other kinds", remedy)
    kind = given.get("model_type")
    if kind not in FAMILIES:
        known = suggest(str(kind), FAMILIES)
        raise ConfigError(field, where, f"is of model_type '{str(kind)[:40]}', which was not tried", known)
    kept = {}
    for name, value in given.items():
        if name.startswith("_") or "implementation" in name or name in LEFT_OUT:
            continue
        dropped = "drop" in name and isinstance(value, int | float) and not isinstance(value, bool)
        kept[name] = 0.0 if dropped else value
    return kept


def digest_of(path: str | Path) -> str:
    """SHA-256 over the names and digests of the config and all weight files of a folder."""
    folder = Path(path).expanduser()
    names = [folder / "config.json", *weight_files(folder)]
    whole = hashlib.sha256()
    for file in names:
        if file.is_file():
            with file.open("rb") as opened:
                whole.update(f"{file.name} {hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def configuration(architecture: Mapping[str, Any]) -> Any:
    """The config object of transformers; every dropout that it has by default is 0 as well."""
    values = dict(architecture)
    made = library().AutoConfig.for_model(values.pop("model_type"), **values)
    for name, value in made.to_dict().items():
        if "drop" in name and isinstance(value, int | float) and not isinstance(value, bool) and value:
            setattr(made, name, 0.0)
    return made


def padding_id(architecture: Mapping[str, Any], given: int | None) -> int:
    """The id that fills a row behind its end: the one given, the config's, or the end-of-text token.

    Raises:
        ConfigError: there is none, or it is outside the vocabulary.
    """
    found = given if given is not None else architecture.get("pad_token_id")
    if found is None:
        found = architecture.get("eos_token_id")
    if isinstance(found, list):
        found = found[0] if found else None
    if found is None:
        raise ConfigError("model.options.pad", "null", "the model names no padding token", "give its id")
    vocabulary = int(architecture.get("vocab_size", 2**31 - 1))
    return whole_number("model.options.pad", found, low=0, high=vocabulary - 1)


def check_length(config: Any, family: Family, tokens: int) -> None:
    """Refuses rows longer than the model has positions for."""
    places = getattr(config, "max_position_embeddings", None)
    if places is not None and tokens > places - family.extra_places:
        problem = f"rows of {tokens} tokens are longer than the model's {places - family.extra_places} positions"
        raise ConfigError("data.text.max_length", tokens, problem, "cut rows shorter, or take another model")


@models.register("hf")
def hf(
    input_shape: tuple[int, ...],
    num_outputs: int,
    architecture: Mapping[str, Any] | None = None,
    use: str = "auto",
    pooling: str = "auto",
    pad: int | None = None,
    normalise: bool = False,
    layers: int = 1,
    zero_init: bool = False,
    lora: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A model of transformers with random weights, (R, T) ids -> (R, num_outputs).

    Args:
        input_shape: (T,), tokens of a row.
        num_outputs: classes, or 1 for binary and regression; 1 for ``use=language``.
        architecture: values of its config; taken from ``model.path`` where one is given.
        use: classify (a linear layer on what is pooled), language (next tokens; one loss a row comes out), or tokens
            (the library's own layer a token; num_outputs is T times the classes); auto: by the data's task.
        pooling: mean (of a row's own tokens), last (its last token), own (the library's own head for sequence
            classification, as ``AutoModelForSequenceClassification`` has it); auto: mean, and last where causal.
        pad: id of the padding token; None for the config's.
        normalise: bring what is pooled to length 1.
        layers: how many of the last layers are pooled, side by side; at least 1.
        zero_init: start the linear layer at zero.
        lora: rank, alpha and targets of adapters (``models/adapters.py``); None for none.

    Raises:
        ConfigError: transformers is not installed, rows are no sequences or too long, an option is none of these.
    """
    if architecture is None:
        raise ConfigError("model.path", "null", "is needed by model=hf", "give a folder with config.json and weights")
    if len(input_shape) != 1:
        problem = f"takes rows of token ids (T,); rows are {tuple(input_shape)}"
        raise ConfigError("model", "hf", problem, "choose a text source")
    for field, value, allowed in (
        ("use", use, ("auto", "classify", "language", "tokens")),
        ("pooling", pooling, ("auto", "mean", "last", "own")),
    ):
        if value not in allowed:
            problem = "is not one of " + ", ".join(allowed)
            raise ConfigError(f"model.options.{field}", value, problem, suggest(str(value), allowed))
    if layers != 1 and (use not in ("auto", "classify") or pooling == "own"):
        problem = "pools layers for a head of dptrain's own, and there is none"
        raise ConfigError("model.options.layers", layers, problem, "leave it at 1, or set use=classify, pooling=mean")
    kept = checked_architecture(architecture, "model.options.architecture", "config")
    family, config = FAMILIES[kept["model_type"]], configuration(kept)
    check_length(config, family, input_shape[0])
    fill = padding_id(kept, pad)
    if use == "language":
        module: nn.Module = LanguageModel(_causal(config, family), fill)
    elif use == "tokens":
        config.num_labels, config.pad_token_id = classes_a_token(num_outputs, input_shape[0]), fill
        made = library().AutoModelForTokenClassification.from_config(config, attn_implementation="sdpa")
        module = TokenClassifier(made, fill, family.causal)
    elif pooling == "own":
        config.num_labels, config.pad_token_id = num_outputs, fill
        made = library().AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa")
        module = TextClassifier(made, None, fill, family.causal, "own", False)
    else:
        way = pooling if pooling != "auto" else ("last" if family.causal else "mean")
        body = _body(config, family)
        deep = whole_number("model.options.layers", layers, low=1, high=config.num_hidden_layers)
        head = nn.Linear(deep * config.hidden_size, num_outputs)
        if truth("model.options.zero_init", zero_init):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        unit = truth("model.options.normalise", normalise)
        module = TextClassifier(body, head, fill, family.causal, way, unit, deep)
    if lora is not None:
        add_lora(module, **lora)
    return module


def classes_a_token(num_outputs: int, tokens: int) -> int:
    """K, where a row's outputs are the logits of K classes for each of its tokens."""
    if num_outputs % tokens or num_outputs // tokens < 2:
        problem = f"gives a class a token, and {num_outputs} outputs are not {tokens} times the classes"
        raise ConfigError("model.options.use", "tokens", problem, "choose data with a label a token: data=tagged")
    return num_outputs // tokens


def _body(config: Any, family: Family) -> nn.Module:
    pooled = {} if family.causal or config.model_type in ("distilbert", "electra") else {"add_pooling_layer": False}
    return library().AutoModel.from_config(config, attn_implementation="sdpa", **pooled)


def _causal(config: Any, family: Family) -> nn.Module:
    if not family.causal:
        problem = f"a {config.model_type} sees tokens on both sides, and cannot tell the next one"
        raise ConfigError("model.options.use", "language", problem, "take a causal model: gpt2, llama, ...")
    return library().AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def fill_from(module: nn.Module, path: str | Path) -> None:
    """Fills the model's own part with the weights in a folder; the head keeps its initialisation.

    Raises:
        ConfigError: weights are of unsafe kinds, are missing, or have other shapes.
    """
    weight_files(path)
    body: Any = module.body if isinstance(module, TextClassifier | TokenClassifier | LanguageModel) else module
    try:
        loaded, report = type(body).from_pretrained(
            str(Path(path).expanduser()),
            config=body.config,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            attn_implementation="sdpa",
            output_loading_info=True,
            **({"add_pooling_layer": False} if getattr(body, "pooler", 0) is None else {}),
        )
    except Exception as error:  # transformers raises OSError, RuntimeError, ValueError, SafetensorError, ...
        problem = f"its weights cannot be read ({type(error).__name__}: {str(error)[:300]})"
        raise ConfigError("model.path", path, problem, "give the folder that save_pretrained() wrote") from error
    lacking = sorted(name for name in report["missing_keys"] if not _is_head(name))
    if lacking:
        remedy = "give weights of the model that config.json describes"
        raise ConfigError("model.path", path, f"lacks the weights '{lacking[0]}' ({len(lacking)} in all)", remedy)
    own = body.state_dict()
    with torch.no_grad():
        for name, value in loaded.state_dict().items():
            target = own.get(name)
            if target is None:  # the layer has an adapter: its own weights lie one level deeper
                before, _, last = name.rpartition(".")
                target = own[f"{before}.base_layer.{last}"]
            if name not in report["missing_keys"]:
                target.copy_(value)


def _is_head(name: str) -> bool:
    return name.startswith(("classifier.", "score.", "pre_classifier.", "pooler.")) or ".pooler." in name
