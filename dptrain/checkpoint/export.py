"""A verified bundle in the form of other programs: transformers, peft, safetensors, MLflow's python function, ONNX.

Nothing is decided here about privacy: all of it is post-processing of a release. The folder is written beside its place
and renamed there, so that it is whole or absent.
"""

from __future__ import annotations

import secrets
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file, save_model
from torch import nn

from dptrain import __version__
from dptrain.checkpoint.bundle import Bundle
from dptrain.checkpoint.model_card import put_statement
from dptrain.checkpoint.onnx_file import ONNX, check_onnx, write_onnx
from dptrain.config_export import ExportConfig
from dptrain.errors import ConfigError
from dptrain.run_folder import write_json, write_text

TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt"),
)
"""Files of a tokenizer that are data; a sentencepiece model or a Python file is none of them."""
HEAD = "head.safetensors"


def check_export(config: ExportConfig, into: Path) -> None:
    """Refuses what cannot be written, before anything is read.

    Raises:
        ConfigError: ``into`` holds files, a library that the form needs is not installed, no tokenizer to copy.
    """
    if config.to == "onnx":
        check_onnx()
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise ConfigError("into", into, "is not an empty folder", "name a new one")
    if config.tokenizer is not None and not _tokenizer_files(config.tokenizer):
        names = ", ".join(TOKENIZER[:3])
        raise ConfigError(
            "tokenizer", config.tokenizer, f"holds no tokenizer ({names}, ...)", "give the model's folder"
        )


def export(bundle: Bundle, config: ExportConfig, into: Path) -> list[str]:
    """Writes the folder; returns the names of its files.

    Args:
        bundle: verified.
        config: checked by ``check_export``.
        into: absolute.

    Raises:
        ConfigError: the model has no such form.
    """
    write = {"hf": _hf, "safetensors": _safetensors, "mlflow": _mlflow, "onnx": _onnx}[config.to]
    into.parent.mkdir(parents=True, exist_ok=True)
    temporary = into.with_name(f".{into.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir(mode=0o755)
    try:
        write(bundle, config, temporary)
        if config.tokenizer is not None and config.to == "hf":
            for file in _tokenizer_files(config.tokenizer):
                shutil.copyfile(file, temporary / file.name)
        if into.exists():
            into.rmdir()
        temporary.rename(into)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return sorted(str(file.relative_to(into)) for file in into.rglob("*") if file.is_file())


def _safetensors(bundle: Bundle, config: ExportConfig, folder: Path) -> None:
    save_model(bundle.model, str(folder / "model.safetensors"))
    shutil.copyfile(bundle.path / "model.json", folder / "model.json")
    put_statement(folder, bundle.statement, 'from safetensors.torch import load_file\nload_file("model.safetensors")')


def _hf(bundle: Bundle, config: ExportConfig, folder: Path) -> None:
    if bundle.spec.name != "hf":
        problem = f"model '{bundle.spec.name}' is none of transformers"
        raise ConfigError("to", "hf", problem, "export to=safetensors or to=mlflow")
    lora = bundle.spec.options.get("lora")
    if config.adapter == "kept":
        if lora is None:
            raise ConfigError("adapter", "kept", "the model has no adapters", "leave adapter out")
        _write_adapter(bundle, lora, folder)
        return
    model: Any = deepcopy(bundle.model)
    body: Any = merged(model.body) if lora is not None else model.body
    body.config.architectures = [type(body).__name__]
    named = bundle.spec.task in ("multiclass", "token_classification") and bundle.spec.class_names
    if named and hasattr(body.config, "id2label"):
        body.config.id2label = dict(enumerate(bundle.spec.class_names))
        body.config.label2id = {name: place for place, name in enumerate(bundle.spec.class_names)}
    body.save_pretrained(folder)
    put_statement(folder, bundle.statement, _use_of(bundle, type(body).__name__, _write_head(bundle, folder)))


def merged(body: nn.Module) -> nn.Module:
    """The body with every adapter added to the weights beside it, in place."""
    for name, layer in list(body.named_modules()):
        if hasattr(layer, "base_layer") and hasattr(layer, "lora_A"):
            held: Any = layer
            with torch.no_grad():
                held.base_layer.weight += held.get_delta_weight("default").to(held.base_layer.weight.dtype)
            parent, _, child = name.rpartition(".")
            setattr(body.get_submodule(parent), child, held.base_layer)
    whole: Any = body
    whole.__dict__.pop("peft_config", None)
    if getattr(whole, "_hf_peft_config_loaded", False):
        whole._hf_peft_config_loaded = False
    return body


def _write_adapter(bundle: Bundle, lora: dict[str, Any], folder: Path) -> None:
    """A folder for ``PeftModel.from_pretrained``: the adapters' factors and their description, and the head beside."""
    model: Any = bundle.model
    tensors = {
        f"base_model.model.{name.replace('.default.', '.')}": value.contiguous()
        for name, value in model.body.state_dict().items()
        if "lora_" in name
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    start = bundle.statement["pretraining"] or {}
    described = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(start.get("name", "")),
        "r": lora["rank"],
        "lora_alpha": lora["alpha"],
        "target_modules": list(lora["targets"]),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(type(layer).__name__ == "Conv1D" for layer in model.body.modules()),
        "inference_mode": True,
        "task_type": None,
    }
    write_json(folder / "adapter_config.json", described)
    use = (
        "from peft import PeftModel\nfrom transformers import AutoModel\n\n"
        'body = PeftModel.from_pretrained(AutoModel.from_pretrained("THE_BASE"), ".")'
    )
    use += _head_words(bundle, _write_head(bundle, folder))
    put_statement(folder, bundle.statement, use, {"dptrain.base.sha256": str(start.get("sha256", ""))})


def _write_head(bundle: Bundle, folder: Path) -> bool:
    """Writes the linear layer that the library has no place for; False where the model is the library's own whole."""
    head = getattr(bundle.model, "head", None)
    if head is None:
        return False
    save_file({name: value.contiguous() for name, value in head.state_dict().items()}, folder / HEAD)
    return True


def _use_of(bundle: Bundle, kind: str, has_head: bool) -> str:
    if not has_head:
        return f'from transformers import {kind}\n\nmodel = {kind}.from_pretrained(".")'
    return 'from transformers import AutoModel\n\nbody = AutoModel.from_pretrained(".")' + _head_words(bundle, True)


def _head_words(bundle: Bundle, has_head: bool) -> str:
    """How pooled features become outputs, as a program."""
    if not has_head:
        return ""
    model: Any = bundle.model
    weight = "mask" if model.pooling == "mean" else "one at a row's last token, else zero"
    if model.layers == 1:
        text = f"\nlayers = [body(input_ids=ids, attention_mask=mask).last_hidden_state]  # weight: {weight}\n"
    else:
        text = (
            "\nmade = body(input_ids=ids, attention_mask=mask, output_hidden_states=True)\n"
            f"layers = made.hidden_states[-{model.layers}:]  # weight: {weight}\n"
        )
    text += "pooled = [(hidden * weight[:, :, None]).sum(1) / weight.sum(1, keepdim=True) for hidden in layers]\n"
    if model.normalise:
        text += "pooled = [torch.nn.functional.normalize(each, dim=1) / len(layers) ** 0.5 for each in pooled]\n"
    text += "pooled = torch.cat(pooled, 1)\n"
    return f'{text}head = safetensors.torch.load_file("{HEAD}")\noutputs = pooled @ head["weight"].T + head["bias"]'


def _mlflow(bundle: Bundle, config: ExportConfig, folder: Path) -> None:
    """The bundle as it is, in a folder that names the loader: it is verified again wherever it is loaded."""
    shutil.copytree(bundle.path, folder / "bundle")
    text = (
        "flavors:\n  python_function:\n    loader_module: dptrain.mlflow_loader\n    data: bundle\n"
        f"    env: requirements.txt\nmodel_uuid: {secrets.token_hex(16)}\n"
        f"metadata:\n  dptrain_sentence: {_quoted(bundle.statement['sentence'])}\n"
    )
    write_text(folder / "MLmodel", text)
    write_text(folder / "requirements.txt", f"dptrain[finetune]=={__version__}\n")
    use = 'import mlflow.pyfunc\n\nmodel = mlflow.pyfunc.load_model(".")\nmodel.predict(rows)  # an array of rows'
    put_statement(folder, bundle.statement, use)


def _onnx(bundle: Bundle, config: ExportConfig, folder: Path) -> None:
    write_onnx(bundle, folder / ONNX)
    use = (
        f'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{ONNX}")\n'
        '(outputs,) = session.run(None, {"inputs": rows})  # rows as the data source makes them, any number at once'
    )
    put_statement(folder, bundle.statement, use)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _tokenizer_files(folder: str) -> list[Path]:
    path = Path(folder).expanduser()
    return [path / name for name in TOKENIZER if (path / name).is_file()]
