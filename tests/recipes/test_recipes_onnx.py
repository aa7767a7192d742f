"""``dptrain export to=onnx``: onnxruntime gives the same numbers for any number of rows, and finds the statement."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dptrain
from dptrain.checkpoint import onnx_file
from dptrain.cli import run
from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.registry import sources

TOKENS, VOCABULARY = 6, 40


@sources.register("drawn_texts")
def drawn_texts(config: Any, seed: int, task: str = "multiclass") -> Source:
    classes = 3 if task == "multiclass" else 1
    info = SourceInfo(
        name="drawn_texts", task=task, input_shape=(TOKENS,), num_classes=classes, public_size=32, is_public=True,
        vocabulary=VOCABULARY, pad=0,
    )  # fmt: skip
    ids = torch.randint(3, VOCABULARY, (32, TOKENS), generator=torch.Generator().manual_seed(1))
    ids[::3, 4:] = 0
    targets = ids[:, 0] % 3 if task == "multiclass" else (ids[:, 1:] != 0).sum(1)
    return Source(info, lambda: Splits(Rows(ids, targets), Rows(ids[:8], targets[:8])))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train(*more: str) -> None:
    line = [
        *("privacy.epsilon=null", "privacy.noise_multiplier=1", "privacy.epochs=null", "privacy.steps=1"),
        *("privacy.expected_batch_size=16", "execution.physical_batch_size=16", "evaluation.every=1"),
        *("tracking=none", "run.dir=r"),
    ]
    assert run(["train", *line, *more]) == 0


def shape(kind: str) -> str:
    if kind == "gpt2":
        return "{model_type: gpt2, vocab_size: 40, n_positions: 8, n_embd: 8, n_layer: 1, n_head: 2, eos_token_id: 2}"
    return (
        f"{{model_type: {kind}, vocab_size: 40, hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2,"
        " intermediate_size: 12, max_position_embeddings: 8, pad_token_id: 0}"
    )


CASES = {
    "numbers": ["data=digits", "model=mlp", "model.options.hidden=[6]"],
    "bert": ["data=own", "data.name=drawn_texts", "model=small_gpt2", f"model.options.architecture={shape('bert')}"],
    "gpt2": [
        *("data=own", "data.name=drawn_texts", "data.options.task=language"),
        *("model=small_gpt2", f"model.options.architecture={shape('gpt2')}"),
    ],
}


@pytest.mark.parametrize(
    "case", ["gpt2", pytest.param("bert", marks=pytest.mark.slow), pytest.param("numbers", marks=pytest.mark.slow)]
)
def test_onnxruntime_gives_the_same_outputs(case: str) -> None:
    pytest.importorskip("onnxscript")
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    if case != "numbers":
        pytest.importorskip("transformers")
    train(*CASES[case])
    with warnings.catch_warnings():  # third parties warn at their first import
        warnings.simplefilter("ignore")
        assert run(["export", "run=r", "to=onnx", "into=out"]) == 0
    statement = json.loads(Path("r/statement.json").read_text())
    held = {entry.key: entry.value for entry in onnx.load("out/model.onnx").metadata_props}
    assert json.loads(held["dptrain.statement"]) == statement and held["dptrain.sentence"] == statement["sentence"]
    assert str(Path.home()).encode() not in Path("out/model.onnx").read_bytes()
    assert sorted(path.name for path in Path("out").iterdir()) == ["README.md", "model.onnx", "statement.json"]
    model, session = dptrain.load("r"), runtime.InferenceSession("out/model.onnx")
    generator = torch.Generator().manual_seed(2)
    for count in (1, 5):
        rows = torch.rand(count, *model.spec.raw_shape, generator=generator)
        if case != "numbers":
            rows = torch.randint(3, VOCABULARY, (count, TOKENS), generator=generator)
            rows[0, 2:] = 0
        (found,) = session.run(None, {"inputs": rows.numpy()})
        if case == "gpt2":  # the scores of next tokens, not a row's loss
            told = torch.from_numpy(found[:, :-1]).log_softmax(-1).gather(2, rows[:, 1:, None])[:, :, 0]
            counted = (rows[:, 1:] != 0).float()
            found = (-(told * counted).sum(1, keepdim=True) / counted.sum(1, keepdim=True)).numpy()
        assert np.allclose(found, model.outputs(rows), atol=1e-5)


def test_a_missing_library_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx_file, "NEEDED", ("no_such_library",))
    assert run(["export", "run=nowhere", "to=onnx", "into=out"]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and "needs no_such_library" in error[0] and "dptrain[onnx]" in error[0]


def test_a_feature_map_is_no_part_of_the_graph() -> None:
    from dptrain.errors import ConfigError

    class _Bundle:
        spec = type("Spec", (), {"features": "scatter"})
        model = torch.nn.Linear(1, 1)

    bundle: Any = _Bundle()
    with pytest.raises(ConfigError, match="feature map 'scatter'"):
        onnx_file.write_onnx(bundle, Path("model.onnx"))
