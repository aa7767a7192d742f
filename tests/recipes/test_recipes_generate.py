"""``dptrain generate``: draws what the model gives, from verified bundles of language models alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from dptrain.cli import recipe, run
from dptrain.data.prompt import open_prompter
from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.models.continuation import draw
from dptrain.registry import sources

transformers = pytest.importorskip("transformers")
TOKENS = 12
SAID = "ab" * 8


def _rows(count: int) -> Rows:
    """The same text in every row, by the built-in tokenizer: <1> a b a b ... ."""
    ids = torch.tensor([[1, *(byte + 3 for byte in SAID.encode())][:TOKENS]] * count)
    return Rows(ids, torch.full((count,), TOKENS - 1))


@sources.register("said_again")
def said_again(config: Any, seed: int, task: str = "language") -> Source:
    info = SourceInfo(
        name="said_again", task=task, input_shape=(TOKENS,), num_classes=1 if task == "language" else 2,
        public_size=64, is_public=True, vocabulary=259, pad=0,
    )  # fmt: skip
    rows = _rows(64) if task == "language" else Rows(_rows(64).inputs, torch.arange(64) % 2)
    return Source(info, lambda: Splits(rows, rows.take(torch.arange(8))))


def _trained(*more: str, name: str = "r") -> None:
    shape = "{model_type: gpt2, vocab_size: 259, n_positions: 16, n_embd: 16, n_layer: 1, n_head: 2, eos_token_id: 2}"
    line = [
        *("train", "data=own", "data.name=said_again", "model=small_gpt2", f"model.options.architecture={shape}"),
        *("privacy=off", "privacy.epochs=null", "privacy.steps=120", "privacy.expected_batch_size=32"),
        *("execution.physical_batch_size=48", "optimizer=adam", "optimizer.lr=0.03", "tracking=none"),
        *("evaluation.every=120", f"run.dir={name}"),
    ]
    assert run([*line, *more]) == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learnt to say ab, its home beside it."""
    place = tmp_path_factory.mktemp("language")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPTRAIN_HOME", str(place / "home"))
        patch.chdir(place)
        _trained()
    return place


@pytest.fixture(autouse=True)
def _there(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPTRAIN_HOME", str(trained / "home"))
    monkeypatch.chdir(trained)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    capsys.readouterr()
    assert run(["generate", "run=r", "tokenizer=bytes", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_what_was_learnt_is_said_and_a_seed_says_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "prompt=ab", "temperature=0", "max_tokens=6") == ["ababab"]
    assert said(capsys, "max_tokens=5", "top_k=1") == ["ababa"], "from the opening mark; the likeliest of one is greedy"
    warm = ["prompt=ab", "temperature=3", "max_tokens=8", "count=4"]
    first = said(capsys, *warm)
    assert said(capsys, *warm) == first and said(capsys, *warm, "seed=1") != first
    assert "no privacy" in said_of_privacy(capsys) or "without" in said_of_privacy(capsys)


def said_of_privacy(capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert run(["generate", "run=r/checkpoint", "tokenizer=bytes", "max_tokens=1"]) == 0
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["tokenizer=null"], 2, "tokenizer=null: is needed"),
        (["tokenizer=nowhere"], 2, "there is no such file"),
        (["max_tokens=16"], 2, "do not fit into the model's 16 positions"),
        (["prompt=" + "x" * 9000], 2, "has over 8192 tokens"),
        (["temperature=-1"], 2, "temperature=-1"),
        (["top_k=0"], 2, "top_k=0"),
        (["run=nowhere"], 2, "no such folder"),
    ],
)
def test_bad_input_is_one_line(words: list[str], code: int, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "run=r", "tokenizer=bytes", *words]) == code
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and why in error[0], error


def test_a_changed_bundle_and_a_classifier_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _trained("++data.options.task=binary", "privacy.steps=1", "evaluation.every=1")
    assert run(["generate", "run=r", "tokenizer=bytes"]) == 2
    assert "is no language model" in capsys.readouterr().err
    weights = Path("r/checkpoint/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert run(["generate", "run=r", "tokenizer=bytes"]) == 4


def test_a_prompt_is_text_whatever_it_holds() -> None:
    spelled = recipe("generate").spelled
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for prompt in ("well, no (yes) [a] {b}: c=d", "it's", 'say "hi" \\ there', "end\\", "a\\'b", ""):
        parsed = OverridesParser.create().parse_override(spelled(f"prompt={prompt}"))
        assert str(parsed.value()) == prompt
    assert spelled("seed=1") == "seed=1" and spelled("prompt='a, b'") == "prompt='a, b'"


def test_tokens_are_drawn_by_the_softmax_of_the_k_largest() -> None:
    """200,000 draws; a share lies within 0.006 of its probability but for a chance under 1e-6 (five sigma)."""
    scores = torch.log(torch.tensor([[0.1, 0.4, 0.2, 0.3]]))
    generator = torch.Generator().manual_seed(0)
    many = scores.expand(200_000, 4)
    for top_k, expected in ((None, [0.1, 0.4, 0.2, 0.3]), (2, [0.0, 4 / 7, 0.0, 3 / 7])):
        found = torch.bincount(draw(many, 1.0, top_k, generator), minlength=4) / len(many)
        assert torch.allclose(found, torch.tensor(expected), atol=0.006)
    squared = torch.tensor([0.01, 0.16, 0.04, 0.09]) / 0.3
    found = torch.bincount(draw(many, 0.5, None, generator), minlength=4) / len(many)
    assert torch.allclose(found, squared, atol=0.006)
    assert draw(scores, 0.0, None, generator).tolist() == [1]


@pytest.mark.skipif(importlib.util.find_spec("tokenizers") is None, reason="needs tokenizers")
def test_closing_marks_are_left_out_and_text_comes_back(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.Fuse()
    made.add_special_tokens(["<pad>", "<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    made.save(str(tmp_path / "tokenizer.json"))
    prompter = open_prompter(str(tmp_path))
    assert prompter.start("b a") == [1, 4, 3] and prompter.start("") == [1] and set(prompter.ends) == {0, 2}
    assert prompter.text([3, 4, 2]) == "ab"
    plain = open_prompter("bytes")
    assert plain.start("a") == [1, 100] and plain.text(plain.start("né")) == "né"
