"""``dptrain export``: what other programs load gives the same numbers, and carries the statement."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import dptrain
from dptrain.cli import run
from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.registry import sources

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
TOKENS, VOCABULARY = 8, 60


def _rows(count: int, seed: int) -> Rows:
    ids = torch.randint(3, VOCABULARY, (count, TOKENS), generator=torch.Generator().manual_seed(seed))
    ids[::3, 5:] = 0
    return Rows(ids, ids[:, 0] % 3)


@sources.register("exported_texts")
def exported_texts(config: Any, seed: int, task: str = "multiclass") -> Source:
    info = SourceInfo(
        name="exported_texts",
        task=task,
        input_shape=(TOKENS,),
        num_classes=3 if task == "multiclass" else 1,
        public_size=48,
        is_public=True,
        class_names=("low", "middle", "high") if task == "multiclass" else (),
    )
    return Source(info, lambda: Splits(_rows(48, 1), _rows(24, 2)))


@pytest.fixture(autouse=True)
def _tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    transformers.logging.disable_progress_bar()
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    bert = transformers.BertConfig(vocab_size=VOCABULARY, max_position_embeddings=16, **shape)
    transformers.AutoModel.from_config(bert).save_pretrained("bert")
    gpt = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2
    )
    transformers.AutoModelForCausalLM.from_config(gpt).save_pretrained("gpt2")


def trained(*more: str, base: str = "bert", name: str = "r") -> None:
    line = [
        *("finetune", "data=own", "data.name=exported_texts", "model=hf", f"model.path={base}", "tracking=none"),
        *("privacy.epsilon=null", "privacy.noise_multiplier=1", "privacy.epochs=null", "privacy.steps=3"),
        *("privacy.expected_batch_size=16", "execution.physical_batch_size=16", "optimizer.lr=0.05"),
        *("evaluation.every=3", f"run.dir={name}"),
    ]
    assert run([*line, *more]) == 0


def export(*more: str) -> int:
    return run(["export", "run=r", "into=out", *more])


def inputs() -> dict[str, torch.Tensor]:
    ids = _rows(24, 2).inputs
    mask = (ids != 0).long()
    mask[:, 0] = 1
    return {"input_ids": ids, "attention_mask": mask}


def ours() -> torch.Tensor:
    return torch.from_numpy(dptrain.load("r").outputs(inputs()["input_ids"].numpy()))


def by_head(hidden: torch.Tensor) -> torch.Tensor:
    """What the model card tells the reader to do with hidden states."""
    weight = inputs()["attention_mask"].float()
    pooled = (hidden * weight[:, :, None]).sum(1) / weight.sum(1, keepdim=True)
    head = load_file("out/head.safetensors")
    return (pooled @ head["weight"].T + head["bias"]).double()


def test_the_librarys_own_classifier_gives_the_same_logits() -> None:
    trained("model.options.pooling=own")
    assert export() == 0
    model = transformers.AutoModelForSequenceClassification.from_pretrained("out", local_files_only=True).eval()
    assert model.config.id2label == {0: "low", 1: "middle", 2: "high"}
    with torch.no_grad():
        assert torch.allclose(model(**inputs()).logits.double(), ours(), atol=1e-5)


@pytest.mark.parametrize("train", ["bitfit", "lora"])
def test_a_pooled_model_is_a_body_and_a_head(train: str) -> None:
    trained(f"finetune.train={train}")
    assert export() == 0
    body = transformers.AutoModel.from_pretrained("out", local_files_only=True).eval()
    with torch.no_grad():
        assert torch.allclose(by_head(body(**inputs()).last_hidden_state), ours(), atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_model_cards_program_gives_the_models_outputs(layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trained("finetune.train=bitfit", f"model.options.layers={layers}", "model.options.normalise=true")
    assert export() == 0
    monkeypatch.chdir("out")
    program = Path("README.md").read_text().split("```python\n")[1].split("```")[0]
    names = {"torch": torch, "safetensors": safetensors, "ids": inputs()["input_ids"]}
    names |= {"mask": inputs()["attention_mask"], "weight": inputs()["attention_mask"].float()}
    with torch.no_grad():
        exec(program, names)
    monkeypatch.chdir("..")
    assert torch.allclose(names["outputs"].double(), ours(), atol=1e-5)


def test_an_adapter_is_loaded_by_peft_beside_its_base() -> None:
    trained("finetune.train=lora", "finetune.rank=3")
    assert export("adapter=kept") == 0
    base = transformers.AutoModel.from_pretrained("bert", local_files_only=True)
    with torch.no_grad():
        before = by_head(base.eval()(**inputs()).last_hidden_state)
        with warnings.catch_warnings():  # peft asks transformers by an old name
            warnings.simplefilter("ignore", FutureWarning)
            body = peft.PeftModel.from_pretrained(base, "out").eval()
        after = by_head(body(**inputs()).last_hidden_state)
    assert torch.allclose(after, ours(), atol=1e-5) and not torch.allclose(before, after, atol=1e-4)
    with safe_open("out/adapter_model.safetensors", framework="pt") as file:
        start = json.loads(Path("r/statement.json").read_text())["pretraining"]
        assert file.metadata()["dptrain.base.sha256"] == start["sha256"]


def test_a_language_model_says_the_same_and_is_judged_by_perplexity() -> None:
    trained("++data.options.task=language", "model.options.pad=0", "finetune.train=lora", base="gpt2")
    result = json.loads(Path("r/result.json").read_text())
    assert result["metrics"]["test_perplexity"] == pytest.approx(VOCABULARY, rel=0.3), "hardly trained: near uniform"
    assert export() == 0
    model = transformers.AutoModelForCausalLM.from_pretrained("out", local_files_only=True).eval()
    ids = torch.randint(3, VOCABULARY, (4, TOKENS))
    with torch.no_grad():
        scores = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
        expected = -scores.gather(2, ids[:, 1:, None]).mean((1, 2))
    assert np.allclose(dptrain.load("r").outputs(ids.numpy())[:, 0], expected.numpy(), atol=1e-5)


def test_the_statement_travels_with_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    trained("finetune.train=head")
    assert export("tokenizer=bert") != 0 and "holds no tokenizer" in capsys.readouterr().err
    Path("bert/tokenizer.json").write_text("{}")
    Path("bert/tokenizer.py").write_text("raise SystemExit")
    assert export("tokenizer=bert") == 0
    statement = json.loads(Path("r/statement.json").read_text())
    card = Path("out/README.md").read_text()
    assert statement["sentence"] in card and f"{statement['guarantee']['epsilon']:.4f}" in card
    assert "bert (public weights)" in card
    for name in ("model.safetensors", "head.safetensors"):
        with safe_open(f"out/{name}", framework="pt") as file:
            assert json.loads(file.metadata()["dptrain.statement"]) == statement
    assert Path("out/tokenizer.json").is_file() and not Path("out/tokenizer.py").exists()
    capsys.readouterr()
    assert run(["verify", "path=out/statement.json"]) == 0


def test_plain_weights_and_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    trained("finetune.train=head")
    assert run(["export", "run=r", "to=safetensors", "into=plain"]) == 0
    assert set(load_file("plain/model.safetensors")) == set(load_file("r/checkpoint/model.safetensors"))
    assert export("to=mlflow") == 0
    from dptrain.mlflow_loader import _load_pyfunc

    assert "loader_module: dptrain.mlflow_loader" in Path("out/MLmodel").read_text()
    found = _load_pyfunc("out/bundle").predict(inputs()["input_ids"].numpy())
    assert np.allclose(found, ours().numpy())


@pytest.mark.slow
def test_mlflow_loads_what_is_exported_to_it() -> None:
    with warnings.catch_warnings():  # MLflow's own import warns of its own types
        warnings.simplefilter("ignore")
        import mlflow.pyfunc  # pyright: ignore[reportMissingImports]

    trained("finetune.train=head")
    assert export("to=mlflow") == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = mlflow.pyfunc.load_model("out")
    assert np.allclose(model.predict(inputs()["input_ids"].numpy()), ours().numpy())


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    trained("finetune.train=head")
    for more, code, said in (
        (["adapter=kept"], 2, "the model has no adapters"),
        (["run=nowhere"], 2, "no such folder"),
        (["to=keras"], 2, "is not one of hf"),
    ):
        capsys.readouterr()
        assert run(["export", "run=r", "into=out", *more]) == code
        assert said in capsys.readouterr().err and not Path("out").exists()
    weights = Path("r/checkpoint/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert export() == 4 and not Path("out").exists(), "verified first"
