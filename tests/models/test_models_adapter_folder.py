"""Adapters made elsewhere: taken up as they are, and refused in one line where they were made for another base."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dptrain.cli import run
from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.privacy.verify import verified
from dptrain.registry import sources

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
TOKENS, VOCABULARY = 8, 60


def _rows(count: int, seed: int) -> Rows:
    ids = torch.randint(3, VOCABULARY, (count, TOKENS), generator=torch.Generator().manual_seed(seed))
    return Rows(ids, ids[:, 0] % 2)


@sources.register("adapted_texts")
def adapted_texts(config: Any, seed: int) -> Source:
    info = SourceInfo(
        name="adapted_texts", task="binary", input_shape=(TOKENS,), num_classes=2, public_size=48, is_public=True
    )
    return Source(info, lambda: Splits(_rows(48, 1), _rows(24, 2)))


def _bert(folder: str, **more: int) -> Any:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, **more}
    config = transformers.BertConfig(vocab_size=VOCABULARY, max_position_embeddings=16, **shape)
    model = transformers.AutoModel.from_config(config)
    model.save_pretrained(folder)
    return model


@pytest.fixture(autouse=True)
def _made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base, another one, and an adapter of rank 2 that peft made for the first."""
    monkeypatch.chdir(tmp_path)
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    _bert("other", hidden_size=8)
    _bert("deeper", num_hidden_layers=2)
    settings = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["query", "value"])
    with warnings.catch_warnings():  # peft asks transformers by an old name
        warnings.simplefilter("ignore", FutureWarning)
        adapted = peft.get_peft_model(_bert("base"), settings)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        adapted.save_pretrained("adapter")


def finetune(*more: str, base: str = "base", name: str = "r") -> int:
    line = [
        *("finetune", "data=own", "data.name=adapted_texts", f"model.path={base}", "finetune.train=lora"),
        *("finetune.adapter=adapter", "privacy.epsilon=null", "privacy.noise_multiplier=1", "privacy.epochs=null"),
        *("privacy.steps=1", "privacy.expected_batch_size=16", "execution.physical_batch_size=16", "tracking=none"),
        *("evaluation.every=1", f"run.dir={name}", *more),
    ]
    return run(line)


def rewritten(**settings: Any) -> None:
    file = Path("adapter/adapter_config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_an_adapter_goes_on_where_it_was() -> None:
    """With a rate of next to nothing, what is released is what peft saved."""
    assert finetune("optimizer.lr=1e-12") == 0 and verified("r").holds
    held = load_file("r/checkpoint/model.safetensors")
    given = load_file("adapter/adapter_model.safetensors")
    assert len(given) == 4
    for name, value in given.items():
        own = name.replace("base_model.model.", "body.").replace(".weight", ".default.weight")
        assert torch.allclose(held[own], value, atol=1e-9)
    start = json.loads(Path("r/statement.json").read_text())["pretraining"]
    assert start["name"] == "base with adapter adapter" and start["kind"] == "public weights"
    described = json.loads(Path("r/checkpoint/model.json").read_text())["options"]["lora"]
    assert (described["rank"], described["alpha"]) == (2, 6.0)


def _by_digest() -> None:
    tensors = load_file("adapter/adapter_model.safetensors")
    save_file(tensors, "adapter/adapter_model.safetensors", metadata={"dptrain.base.sha256": "0" * 64})


def _deeper() -> None:
    tensors = load_file("adapter/adapter_model.safetensors")
    moved = {name.replace("layer.0", "layer.1"): value for name, value in tensors.items()}
    save_file(moved, "adapter/adapter_model.safetensors")


def _private() -> None:
    tensors = load_file("adapter/adapter_model.safetensors")
    save_file(tensors, "adapter/adapter_model.safetensors", metadata={"dptrain.epsilon": "1.0"})


@pytest.mark.parametrize(
    ("change", "base", "said"),
    [
        (
            None,
            "other",
            "was made for another base: 'encoder.layer.0.attention.self.query' is (8, 8) here and (16, 16)",
        ),
        (_deeper, "base", "was made for another base: this one has no layer 'encoder.layer.1"),
        (_by_digest, "base", "was made for another base (SHA-256 000000000000"),
        (_private, "base", "is a private release"),
        (lambda: rewritten(use_dora=True), "base", "sets use_dora"),
        (lambda: rewritten(peft_type="IA3"), "base", "describes no LoRA"),
        (lambda: rewritten(r=3), "base", "do not make rank 3"),
        (lambda: Path("adapter/adapter_config.json").write_text("["), "base", "adapter_config.json: "),
        (lambda: Path("adapter/adapter_model.safetensors").write_bytes(b"x"), "base", "cannot be read"),
        (
            lambda: Path("adapter/adapter_model.safetensors").rename("adapter/adapter_model.bin"),
            "base",
            "holds adapter_model.bin, which can run code",
        ),
    ],
)
def test_what_does_not_fit_is_one_line_and_nothing_is_spent(
    change: Any, base: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if change is not None:
        change()
    assert finetune(base=base) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and said in errors[0], errors
    assert not Path("r").exists()


def test_a_base_with_more_layers_takes_it(capsys: pytest.CaptureFixture[str]) -> None:
    """By its shapes it fits, and nothing in a folder of peft's own says more: the weights say which base was meant."""
    assert finetune(base="deeper") == 0
    assert finetune("finetune.train=full", name="s") == 2
    assert "goes with finetune.train=lora" in capsys.readouterr().err
