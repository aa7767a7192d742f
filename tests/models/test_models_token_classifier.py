"""Token classification: exact sums of per-unit means, spans scored whole, a run, and what transformers loads of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import dptrain
from dptrain.cli import run
from dptrain.data.batches import PhysicalBatch
from dptrain.data.source import IGNORED
from dptrain.gradients.protocol import ClippingRule, EngineSettings, trainable
from dptrain.models.hf import hf, read_architecture
from dptrain.models.validate import check_model
from dptrain.privacy.verify import verified
from dptrain.registry import engines
from dptrain.run_folder import read_json
from dptrain.training.losses import check_row_loss, token_cross_entropy
from dptrain.training.metrics import Predictions, entity_f1, token_accuracy

transformers = pytest.importorskip("transformers")
TOKENS, CLASSES, NORM = 7, 3, 0.3


@pytest.fixture(autouse=True)
def _tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    transformers.logging.disable_progress_bar()
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=259, max_position_embeddings=32, **shape)
    transformers.AutoModel.from_config(config).save_pretrained("bert")


def rows() -> tuple[Tensor, Tensor]:
    """Rows of 7, 3, 7 and 1 tokens; labels everywhere, at two, at none, at one."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 259, (4, TOKENS), generator=generator)
    tags = torch.randint(0, CLASSES, (4, TOKENS), generator=generator)
    ids[1, 3:], tags[1, 2:] = 0, IGNORED
    tags[2] = IGNORED
    ids[3, 1:], tags[3, 1:] = 0, IGNORED
    return ids, tags


@pytest.mark.parametrize("engine", ["bookkeeping", "loop"])
def test_sums_are_those_of_float64_autograd_row_by_row(engine: str) -> None:
    """Two units of two rows: a unit's loss is the mean over its rows of the mean over their labelled tokens."""
    module = hf((TOKENS,), TOKENS * CLASSES, architecture=read_architecture("bert"), use="tokens").train()
    check_model(module, "hf", (TOKENS,), TOKENS * CLASSES)
    check_row_loss(token_cross_entropy, TOKENS * CLASSES, "token_classification")
    ids, tags = rows()
    unit, weight = torch.tensor([0, 0, 1, 1]), torch.full((4,), 0.5)
    total = torch.zeros(sum(p.numel() for p in trainable(module).values()), dtype=torch.float64)
    made = engines.build(engine, module, token_cross_entropy, ClippingRule(NORM, None), EngineSettings())
    made.add_clipped_sum(PhysicalBatch(ids, tags, unit, weight), total)

    wide = module.double()
    expected = torch.zeros_like(total)
    for one in (0, 1):
        losses = []
        for row in torch.nonzero(unit == one).flatten():
            scores = wide(ids[row : row + 1]).reshape(TOKENS, CLASSES).log_softmax(-1)
            places = torch.nonzero(tags[row] != IGNORED).flatten()
            told = [-scores[place, tags[row, place]] for place in places]
            losses.append(torch.stack(told).mean() if told else scores.sum() * 0.0)
        gradient = torch.autograd.grad(torch.stack(losses).mean(), list(trainable(wide).values()), allow_unused=True)
        parts = zip(gradient, trainable(wide).values(), strict=True)
        flat = torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in parts])
        expected += flat * min(1.0, NORM / float(flat.norm()))
    assert float((total - expected).norm()) < 1e-5 * float(expected.norm())


def test_a_row_without_labels_adds_nothing_and_padding_is_not_counted() -> None:
    outputs = torch.randn(2, TOKENS * CLASSES, requires_grad=True)
    tags = torch.full((2, TOKENS), IGNORED)
    tags[1, 2] = 1
    losses = token_cross_entropy(outputs, tags)
    (gradient,) = torch.autograd.grad(losses.sum(), outputs)
    assert losses[0] == 0 and (gradient[0] == 0).all()
    assert (gradient[1].reshape(TOKENS, CLASSES).abs().sum(1) > 0).tolist() == [place == 2 for place in range(TOKENS)]


NAMES = ("O", "B-PER", "I-PER", "B-LOC")


@pytest.mark.parametrize(
    ("true", "told", "f1", "accuracy"),
    [
        ([1, 2, 0, 3], [1, 2, 0, 3], 1.0, 1.0),
        ([1, 2, 0, 3], [1, 0, 0, 3], 0.5, 0.75),  # half of a name is no name
        ([1, 1, 0], [1, 2, 0], 0.0, 2 / 3),  # two names, or one of two words
        ([0, 2, 2], [0, 1, 2], 1.0, 2 / 3),  # an I- behind O opens a span as well
        ([0, 0], [0, 0], 0.0, 1.0),
        ([3, 0, 1], [3, 2, 1], 4 / 5, 2 / 3),  # an entity too many
    ],
)
def test_entities_are_found_whole_or_not(true: list[int], told: list[int], f1: float, accuracy: float) -> None:
    width = 2 * len(true)
    tags = np.full((1, width), IGNORED)
    tags[0, ::2] = true  # pieces of words in between
    outputs = np.zeros((1, width, len(NAMES)))
    for place, tag in enumerate(told):
        outputs[0, 2 * place, tag] = 1.0
        outputs[0, 2 * place + 1, 3] = 1.0  # what is said of pieces does not count
    p = Predictions("token_classification", outputs.reshape(1, -1), tags, NAMES)
    assert entity_f1(p) == pytest.approx(f1) and token_accuracy(p) == pytest.approx(accuracy)


def line(*more: str) -> list[str]:
    return [
        *("finetune", "data=tagged", "data.path=rows.jsonl", "data.classes=[O,B-PER]", "data.public_size=48"),
        *("data.public_path=public.jsonl", "data.text.tokenizer=bytes", "data.text.max_length=16", "model.path=bert"),
        *("data.all_public=true", "privacy.epsilon=null", "privacy.noise_multiplier=1", "privacy.epochs=null"),
        *("privacy.steps=4", "privacy.expected_batch_size=16", "execution.physical_batch_size=16", "tracking=none"),
        *("evaluation.every=4", "run.dir=r", *more),
    ]


def write_rows() -> None:
    for name, count in (("rows.jsonl", 48), ("public.jsonl", 12)):
        made = [{"tokens": ["Al", f"w{i}", "Bo"], "tags": ["B-PER", "O", "B-PER"], "p": i} for i in range(count)]
        Path(name).write_text("\n".join(map(json.dumps, made)))


def test_a_run_verifies_is_audited_and_leaves_for_transformers() -> None:
    write_rows()
    assert run(["plan", *line()[1:], "model=hf"]) == 0
    assert run(line("audit.canaries=10", "audit.canary_kind=natural")) == 0
    metrics = read_json(Path("r", "result.json"))["metrics"]
    assert {"test_token_accuracy", "test_entity_f1", "public_loss"} <= set(metrics) and verified("r").holds
    assert run(["audit", "run=r"]) == 0
    assert run(["export", "run=r", "into=out"]) == 0
    model = transformers.AutoModelForTokenClassification.from_pretrained("out", local_files_only=True).eval()
    assert model.config.id2label == {0: "O", 1: "B-PER"}
    ids = torch.randint(3, 259, (3, 16))
    ids[1, 5:] = 0
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=(ids != 0).long()).logits
    ours = dptrain.load("r")
    assert np.allclose(ours.outputs(ids).reshape(3, 16, 2), theirs.numpy(), atol=1e-5)
    assert np.array_equal(ours.predict(ids), theirs.argmax(-1).numpy())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["audit.canaries=10"], "cannot be crafted for texts with a label a token"),
        (["task.class_weights=[1,2]"], "takes no weights"),
        (["task.metrics=[accuracy]"], "does not fit data of task token_classification"),
        (["evaluation.metrics=dp"], "counts right answers"),
        (["finetune.train=probe"], "no features that could be computed once"),
        (["data.text.max_length=64"], "longer than the model's 32 positions"),
        (["model.options.use=language"], "does not fit data 'tagged'"),
        (["data.text.tokenizer=nowhere"], "data.text.tokenizer=nowhere: there is no such file"),
        (["model.path=unsafe"], "holds pytorch_model.bin, which can run code"),
        (["finetune.also=['*.poolr.*']"], "matches no parameter's name"),
        (["data.unit_column=p", "privacy.unit=user"], "data.unit_column=p: row 3 belongs to nobody"),
    ],
)
def test_bad_input_is_one_line(more: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows()
    text = Path("rows.jsonl").read_text()
    Path("rows.jsonl").write_text(text.replace('"p": 2}', '"p": null}'))
    Path("unsafe").mkdir()
    Path("unsafe/pytorch_model.bin").write_bytes(b"x")
    assert run(line(*more)) == 2
    errors = [text for text in capsys.readouterr().err.splitlines() if "error" in text]
    assert len(errors) == 1 and said in errors[0], errors
    assert not Path("r").exists()
