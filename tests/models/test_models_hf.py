"""Models of transformers: exact sums under the default engine, units apart in spite of padding, bad folders refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dptrain.config_finetune import FinetuneConfig
from dptrain.data.batches import PhysicalBatch
from dptrain.errors import ConfigError
from dptrain.gradients.protocol import ClippingRule, EngineSettings, trainable
from dptrain.models.adapters import add_lora, layers_for
from dptrain.models.frozen import FrozenBody, frozen_features
from dptrain.models.hf import fill_from, hf, read_architecture
from dptrain.models.probe import check_deterministic
from dptrain.models.text_heads import TextClassifier
from dptrain.models.trained_part import choose_trained
from dptrain.models.validate import check_model
from dptrain.registry import engines
from dptrain.training.losses import cross_entropy

transformers = pytest.importorskip("transformers")
TOKENS = 12


def config_of(kind: str) -> Any:
    """A config of two layers of width 16, with the dropout that the library has by default."""
    usual = {
        "vocab_size": 97,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 20,
        "pad_token_id": 0,
    }
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    others = {
        "distilbert": {"vocab_size": 97, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
        "electra": {**usual, "embedding_size": 16},
        "roberta": {**usual, "pad_token_id": 1},
        "gpt2": {"vocab_size": 97, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 20, **ends},
        "gpt_neox": {**usual, "pad_token_id": None, **ends},
        "llama": {**usual, "num_key_value_heads": 1},
        "qwen2": {**usual, "num_key_value_heads": 1},
    }
    return transformers.AutoConfig.for_model(kind, **others.get(kind, usual))


def saved(kind: str, folder: Path, head: str = "AutoModel") -> Path:
    """A model with random weights, as ``save_pretrained`` writes it."""
    transformers.logging.disable_progress_bar()
    torch.manual_seed(1)
    getattr(transformers, head).from_config(config_of(kind)).save_pretrained(folder)
    return folder


def made(kind: str, folder: Path, outputs: int = 3, **options: Any) -> Any:
    head = "AutoModelForCausalLM" if options.get("use") == "language" else "AutoModel"
    path = saved(kind, folder / kind, head)
    torch.manual_seed(0)
    module = hf((TOKENS,), outputs, architecture=read_architecture(path), **options)
    fill_from(module, path)
    return module


def texts(pad: int) -> Tensor:
    """Five rows: full, of 5 tokens, of 1, full, empty."""
    ids = torch.randint(3, 97, (5, TOKENS), generator=torch.Generator().manual_seed(2))
    for row, length in ((1, 5), (2, 1), (4, 0)):
        ids[row, length:] = pad
    return ids


def clipped(module: Any, ids: Tensor, engine: str, norm: float = 0.5) -> tuple[Tensor, Tensor]:
    """(clipped sum, norms) of one physical batch, a unit a row."""
    targets = ids[:, 0] % 3  # a row's own
    batch = PhysicalBatch(ids, targets, torch.arange(len(ids)), torch.ones(len(ids)))
    loss = first_output if module(ids[:1]).shape[1] == 1 else cross_entropy
    made = engines.build(engine, module.train(), loss, ClippingRule(norm, None), EngineSettings())
    total = torch.zeros(sum(p.numel() for p in trainable(module).values()), dtype=torch.float64)
    return total, made.add_clipped_sum(batch, total).norms


def first_output(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs[:, 0]


CASES = [
    *((kind, {}) for kind in ("bert", "distilbert", "electra", "roberta", "gpt2", "gpt_neox", "llama", "qwen2")),
    ("bert", {"pooling": "own"}),
    ("bert", {"layers": 2, "normalise": True}),
    ("gpt2", {"layers": 2}),
    ("gpt2", {"use": "language"}),
    ("llama", {"use": "language"}),
    ("bert", {"lora": {"rank": 2, "alpha": 4.0, "targets": ["encoder.layer.1.attention.self.value"]}}),
    ("gpt2", {"lora": {"rank": 2, "alpha": 4.0, "targets": ["h.0.attn.c_attn"]}}),
]


@pytest.mark.parametrize(("kind", "options"), CASES, ids=lambda value: str(value)[:30])
def test_clipped_sums_are_those_of_one_unit_at_a_time(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    if "lora" in options:
        pytest.importorskip("peft")
    outputs = 1 if options.get("use") == "language" else 3
    module = made(kind, tmp_path, outputs, **options)
    check_model(module, kind, (TOKENS,), outputs)
    check_deterministic(module, kind, (TOKENS,))
    if "lora" in options:
        with torch.no_grad():  # an adapter that is still nothing would hide its first factor's gradient
            for name, parameter in module.named_parameters():
                if "lora_B" in name:
                    parameter.normal_()
    ids = texts(module.pad)
    (sums, norms), (expected, alone) = clipped(module, ids, "bookkeeping"), clipped(module, ids, "loop")
    assert torch.allclose(norms, alone, rtol=1e-4, atol=1e-6)
    assert float((sums - expected).norm()) < 1e-5 * float(expected.norm())


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_unit_leaves_the_outputs_and_gradients_of_others_alone(kind: str, tmp_path: Path) -> None:
    """Of a neighbour that is longer, shorter or empty: outputs are the same numbers, gradients within rounding."""
    module = made(kind, tmp_path)
    ids = texts(module.pad)
    base, rest = module(ids), [0, 1, 2, 4]
    sums, norms = clipped(module, ids[rest], "bookkeeping", norm=1e6)
    scale = float(sums.norm())
    for neighbour in (torch.randint(3, 97, (TOKENS,)), ids[1], ids[4]):
        changed = ids.clone()
        changed[3] = neighbour
        assert torch.equal(module(changed)[rest], base[rest])
        with_it, all_norms = clipped(module, changed, "bookkeeping", norm=1e6)
        its_own, _ = clipped(module, changed[3:4], "bookkeeping", norm=1e6)
        assert torch.allclose(all_norms[rest], norms, rtol=1e-6, atol=1e-9)
        assert float((with_it - its_own - sums).norm()) < 1e-5 * scale


def test_nothing_walks_back_through_a_frozen_body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not trained, with nothing trained in front of it, costs a forward pass alone."""
    from dptrain.gradients.bookkeeping import normalisation

    def fail(*_: Any) -> None:
        raise AssertionError("a backward pass through a frozen norm")

    module = made("bert", tmp_path)
    choose_trained(module, FinetuneConfig(train="head"))
    monkeypatch.setattr(normalisation._LayerNorm, "backward", staticmethod(fail))
    sums, _ = clipped(module, texts(module.pad), "bookkeeping")
    assert float(sums.norm()) > 0


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_padding_tells_nothing(kind: str, tmp_path: Path) -> None:
    """A row gives the same whatever its padded length, and what lies behind its end is never read."""
    module = made(kind, tmp_path).eval()
    row = texts(module.pad)[1:2]
    longer = torch.cat([row, torch.full((1, 6), module.pad)], dim=1)
    assert torch.allclose(module(row), module(longer), atol=1e-6)
    assert torch.allclose(module(row), module(row[:, :5]), atol=1e-6)


def test_what_a_causal_model_says_of_a_token_does_not_depend_on_later_ones(tmp_path: Path) -> None:
    module = made("gpt2", tmp_path, 1, use="language").eval()
    ids = texts(module.pad)[:1]
    later = ids.clone()
    later[0, 8:] = 5
    assert torch.allclose(module.logits(ids)[:, :8], module.logits(later)[:, :8], atol=1e-6)


def test_the_loss_of_a_text_is_the_mean_over_its_own_next_tokens(tmp_path: Path) -> None:
    module = made("gpt2", tmp_path, 1, use="language").eval()
    row = texts(module.pad)[1:2]  # five tokens: four are told from those before
    with torch.no_grad():
        scores = torch.log_softmax(module.logits(row)[0], dim=-1)
        expected = -sum(float(scores[place, row[0, place + 1]]) for place in range(4)) / 4
        assert float(module(row)) == pytest.approx(expected, rel=1e-5)
        assert float(module(texts(module.pad)[4:5])) == 0.0, "an empty text has no token to tell"


def test_weights_are_those_of_the_folder_and_dropout_is_gone(tmp_path: Path) -> None:
    module = made("bert", tmp_path)
    own = transformers.AutoModel.from_pretrained(tmp_path / "bert", add_pooling_layer=False).eval()
    ids = torch.randint(3, 97, (3, TOKENS))
    mean = own(input_ids=ids).last_hidden_state.mean(1)
    assert torch.allclose(module.train().features(ids), mean, atol=1e-6)
    assert own.config.hidden_dropout_prob > 0
    assert all(layer.p == 0 for layer in module.modules() if isinstance(layer, torch.nn.Dropout))


def test_several_layers_are_pooled_side_by_side(tmp_path: Path) -> None:
    module = made("bert", tmp_path, layers=2, normalise=True).eval()
    own = transformers.AutoModel.from_pretrained(tmp_path / "bert", add_pooling_layer=False).eval()
    ids = torch.randint(3, 97, (3, TOKENS))
    states = own(input_ids=ids, output_hidden_states=True).hidden_states
    assert len(states) == 3, "what is embedded, and two layers"
    means = [torch.nn.functional.normalize(state.mean(1), dim=1) / 2**0.5 for state in states[1:]]
    features = module.features(ids)
    assert features.shape == (3, 32) and torch.allclose(features, torch.cat(means, 1), atol=1e-6)
    assert torch.allclose(features.norm(dim=1), torch.ones(3), atol=1e-5)
    alone, row = FrozenBody(made("bert", tmp_path / "one", normalise=True), ids[:1]), ids[:1]
    assert FrozenBody(module, row).version != alone.version and FrozenBody(module, row).output_shape == (32,)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"layers": 3}, r"layers=3.*2"), ({"layers": 0}, "layers=0"), ({"layers": 2, "pooling": "own"}, "leave it at 1")],
)
def test_layers_that_are_not_there_are_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        made("bert", tmp_path, **options)


def test_frozen_features_are_the_models_own_and_are_kept(tmp_path: Path) -> None:
    module = made("bert", tmp_path, normalise=True)
    ids = texts(module.pad)
    body = FrozenBody(module, ids[:1])
    features = frozen_features(body, ids, tmp_path / "cache")
    assert body.output_shape == (16,) and features.shape == (5, 16)
    assert torch.allclose(module.eval()(ids), module(features), atol=1e-6)
    assert torch.allclose(features.norm(dim=1), torch.ones(5), atol=1e-5)
    kept = list((tmp_path / "cache").iterdir())
    assert len(kept) == 1 and kept[0].stat().st_mode & 0o077 == 0
    with torch.no_grad():
        next(module.body.parameters()).add_(1.0)
    assert FrozenBody(module, ids[:1]).version != body.version, "other weights, other features"


def test_a_frozen_row_does_not_depend_on_who_is_mapped_with_it(tmp_path: Path) -> None:
    module = made("bert", tmp_path)
    ids = texts(module.pad)
    together = FrozenBody(module, ids[:1])(ids)
    for row in range(len(ids)):
        assert torch.allclose(FrozenBody(module, ids[:1])(ids[row : row + 1])[0], together[row], atol=1e-6)


def folder_with(tmp_path: Path, **changes: Any) -> Path:
    folder = saved("bert", tmp_path / "changed")
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "names 'auto_map'"),
        ({"quantization_config": {}}, "names 'quantization_config'"),
        ({"model_type": "bertt"}, "did you mean 'bert'"),
        ({"model_type": None}, "was not tried"),
    ],
)
def test_configs_that_name_code_or_what_is_unknown_are_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        read_architecture(folder_with(tmp_path, **changes))


def test_weights_that_could_run_code_are_refused_with_the_remedy(tmp_path: Path) -> None:
    folder = saved("bert", tmp_path / "unsafe")
    module = hf((TOKENS,), 3, architecture=read_architecture(folder))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin, which can run code .*dptrain convert weights="):
        fill_from(module, folder)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        fill_from(torch.nn.Linear(1, 1), tmp_path / "nowhere")
    folder = saved("bert", tmp_path / "one")
    module = hf((TOKENS,), 3, architecture=read_architecture(folder))
    (folder / "model.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(ConfigError, match="cannot be read"):
        fill_from(module, folder)
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match="is not a file"):
        read_architecture(folder)
    folder = saved("bert", tmp_path / "two")
    held = load_file(folder / "model.safetensors")
    held.pop("encoder.layer.1.output.dense.weight")
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="lacks the weights"):
        fill_from(hf((TOKENS,), 3, architecture=read_architecture(folder)), folder)


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    architecture = read_architecture(saved("bert", tmp_path / "bert"))
    with pytest.raises(ConfigError, match="rows of 21 tokens are longer than the model's 20 positions"):
        hf((21,), 2, architecture=architecture)
    with pytest.raises(ConfigError, match="18 positions"):
        hf((19,), 2, architecture=read_architecture(saved("roberta", tmp_path / "roberta")))
    with pytest.raises(ConfigError, match="takes rows of token ids"):
        hf((1, 28, 28), 2, architecture=architecture)
    with pytest.raises(ConfigError, match="sees tokens on both sides"):
        hf((TOKENS,), 1, architecture=architecture, use="language")
    with pytest.raises(ConfigError, match=r"model\.path"):
        hf((TOKENS,), 2)


def test_adapters_start_as_nothing_and_go_where_they_are_told(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    module = made("bert", tmp_path).eval()
    ids = texts(module.pad)
    before = module(ids)
    targets = layers_for(module.body, [])
    assert targets == [f"encoder.layer.{i}.attention.self.{part}" for i in (0, 1) for part in ("query", "value")]
    add_lora(module, 2, 4.0, targets)
    assert torch.equal(module(ids), before)
    assert sum("lora_" in name for name, _ in module.named_parameters()) == 8
    with pytest.raises(
        ConfigError, match=r"finetune\.targets=\*\.querry: matches no linear layer; did you mean '\*\.query'"
    ):
        layers_for(made("bert", tmp_path / "again").body, ["*.querry"])


def test_a_model_of_the_library_is_a_text_classifier(tmp_path: Path) -> None:
    assert isinstance(made("bert", tmp_path), TextClassifier)
