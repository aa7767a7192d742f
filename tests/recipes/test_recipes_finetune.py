"""``dptrain finetune`` from a folder of weights to a bundle that verifies, and from a bundle to the next."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dptrain
from dptrain.cli import run
from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.errors import ClaimRejected, ConfigError
from dptrain.privacy.verify import verified
from dptrain.registry import metrics, sources
from dptrain.run_folder import read_json

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
TOKENS, VOCABULARY = 8, 60
COMMON = [
    "finetune",
    "data=own",
    "model=hf",
    "model.path=tiny",
    "tracking=none",
    "privacy.epsilon=null",
    "privacy.noise_multiplier=1.5",
    "privacy.epochs=null",
    "privacy.steps=4",
    "privacy.expected_batch_size=16",
    "execution.physical_batch_size=16",
    "evaluation.every=4",
]


def _texts(count: int, seed: int) -> Rows:
    """Ids behind which zeros follow; the label is whether the first id is small."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (count, TOKENS), generator=generator)
    for row in range(0, count, 3):
        ids[row, 3 + row % 4 :] = 0
    return Rows(ids, (ids[:, 0] < VOCABULARY // 2).long())


@sources.register("tiny_texts")
def tiny_texts(config: Any, seed: int, classes: int = 2, public: bool = True, tokens: int = TOKENS) -> Source:
    info = SourceInfo(
        name="tiny_texts",
        task="binary" if classes == 2 else "multiclass",
        input_shape=(tokens,),
        num_classes=classes,
        public_size=96,
        is_public=public,
    )
    return Source(info, lambda: Splits(_texts(96, 1), _texts(48, 2)))


@pytest.fixture(autouse=True)
def _tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    transformers.logging.disable_progress_bar()
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.BertConfig(vocab_size=VOCABULARY, max_position_embeddings=16, **shape)
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "tiny")


def finetune(*more: str, name: str = "r") -> int:
    return run([*COMMON, "data.name=tiny_texts", f"run.dir={name}", *more])


def statement(name: str = "r") -> dict[str, Any]:
    return json.loads(Path(name, "statement.json").read_text())


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ("full", "trains 39 of 39 tensors"),
        ("lora", "trains 10 of 47 tensors, 273 of"),
        ("bitfit", "trains 19 of 39 tensors"),
        ("head", "trains 2 of 39 tensors, 17 of"),
        ("probe", "trains 2 of 39 tensors, 17 of"),
    ],
)
def test_every_way_gives_a_bundle_that_verifies_and_predicts(
    train: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(f"finetune.train={train}", "finetune.rank=2") == 0
    assert said in capsys.readouterr().err
    assert verified("r").holds
    model = dptrain.load("r")
    ids = _texts(48, 2).inputs
    outputs = model.outputs(ids)
    assert outputs.shape == (48, 1) and np.isfinite(outputs).all()
    correct = float(np.mean(model.predict(ids) == _texts(48, 2).targets.numpy()))
    assert read_json(Path("r", "result.json"))["metrics"]["test_accuracy"] == pytest.approx(correct, abs=0.03)


def test_only_what_is_trained_moves() -> None:
    from safetensors.torch import load_file

    assert finetune("finetune.train=bitfit") == 0
    before, after = load_file("tiny/model.safetensors"), load_file("r/checkpoint/model.safetensors")
    moved = {name for name, value in before.items() if not torch.equal(value, after.get(f"body.{name}", value))}
    assert moved and all(name.endswith("bias") for name in moved)


def test_the_statement_names_the_public_weights() -> None:
    assert finetune("finetune.train=head") == 0
    found = statement()
    assert found["pretraining"]["kind"] == "public weights" and found["pretraining"]["name"] == "tiny"
    assert any("taken as public: 'tiny'" in line for line in found["limits"]["not_covered"])
    assert "tiny" not in json.loads(Path("r/checkpoint/model.json").read_text())["options"], "no path of this machine"


def test_the_description_of_a_bundle_is_values_only() -> None:
    assert finetune("finetune.train=head") == 0
    described = json.loads(Path("r/checkpoint/model.json").read_text())
    assert described["options"]["architecture"]["model_type"] == "bert"
    assert not any("drop" in name and value for name, value in described["options"]["architecture"].items())
    assert "path" not in described["options"]


def test_a_start_is_verified_and_both_epsilons_add_up() -> None:
    assert finetune("finetune.train=head", name="first") == 0
    assert finetune("finetune.start=first", "finetune.train=bitfit", name="second") == 0
    one, two = statement("first"), statement("second")
    block = two["pretraining"]
    assert block["kind"] == "private release" and block["people"] == "unknown"
    assert block["epsilon"] == one["guarantee"]["epsilon"]
    assert block["epsilon_together"] == pytest.approx(one["guarantee"]["epsilon"] + two["guarantee"]["epsilon"])
    assert block["delta_together"] == pytest.approx(2e-5)
    assert "both add up to" in two["sentence"] and verified("second").holds
    assert finetune("finetune.start=second", "finetune.train=head", name="third") == 0
    assert statement("third")["pretraining"]["epsilon"] == block["epsilon_together"], "the whole chain is carried"
    assert finetune("finetune.start=first", "finetune.people=other", name="others") == 0
    others = statement("others")
    assert "by declaration nobody is in both" in others["sentence"] and verified("others").holds
    worst = max(one["guarantee"]["epsilon"], others["guarantee"]["epsilon"])
    assert others["pretraining"]["epsilon_together"] == worst


def test_sums_that_are_too_small_do_not_verify() -> None:
    from dptrain.privacy.seal import sign_statement
    from dptrain.signing import load_signer

    assert finetune("finetune.train=head", name="first") == 0
    assert finetune("finetune.start=first", "finetune.train=head", name="second") == 0
    for change in ({"epsilon_together": 0.5}, {"epsilon": 0.1}, {"people": "other"}):
        forged = statement("second")
        forged["pretraining"] |= change
        forged = sign_statement(forged, load_signer())
        Path("forged.json").write_text(json.dumps(forged))
        assert not verified("forged.json").holds, change
    forged = statement("second")
    forged["pretraining"] = None
    Path("forged.json").write_text(json.dumps(sign_statement(forged, load_signer())))
    assert not verified("forged.json").holds, "the sentence speaks of a start that the block does not name"


def test_a_start_that_was_changed_is_refused_and_nothing_is_written() -> None:
    assert finetune("finetune.train=head", name="first") == 0
    weights = Path("first/checkpoint/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert finetune("finetune.start=first", name="second") == ClaimRejected.exit_code
    assert not Path("second").exists()


def test_a_start_for_other_classes_gets_a_new_head(capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune("finetune.train=head", name="first") == 0
    more = ["finetune.start=first", "++data.options.classes=3", "finetune.train=probe"]
    assert finetune(*more, name="second") == 0
    assert "the head is new" in capsys.readouterr().err
    assert dptrain.load("second").outputs(_texts(4, 2).inputs).shape == (4, 3)


def test_a_public_start_without_privacy_is_taken_as_public() -> None:
    assert finetune("privacy=off", "privacy.steps=4", "privacy.epochs=null", name="first") == 0
    assert finetune("finetune.start=first", "finetune.train=head", name="second") == 0
    assert statement("second")["pretraining"]["kind"] == "public weights" and verified("second").holds


def test_private_rows_are_charged_and_a_run_goes_on_from_a_private_start() -> None:
    private = ["++data.options.public=false", "run.purpose=final", "ledger.epsilon_limit=30"]
    assert finetune("finetune.train=probe", *private, name="first") == 0
    assert finetune("finetune.start=first", "finetune.train=probe", *private, name="second") == 0
    one, two = statement("first"), statement("second")
    assert two["composition"]["prior"] == pytest.approx(one["composition"]["total"])
    assert two["pretraining"]["epsilon"] == one["guarantee"]["epsilon"]
    assert finetune("finetune.start=first", "finetune.people=other", *private, name="third") == 0
    known = statement("third")["pretraining"]["people"]
    assert known == two["pretraining"]["people"] == "same", "one account bore both, whatever was declared"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["model.path=nowhere"], "model.path=nowhere: no such folder"),
        (["model.path=null"], "model.path=null: is needed by model=hf"),
        (["finetune.train=lora", "finetune.targets=['*.querry']"], "matches no linear layer; did you mean '*.query'"),
        (["finetune.also=['*.pooler.*']"], "matches no parameter's name"),
        (["++data.options.tokens=17"], "longer than the model's 16 positions"),
        (["finetune.start=nowhere"], "no such folder"),
        (["model=mlp", "model.path=tiny"], "is not read by model 'mlp'"),
        (["finetune.people=same"], "is about a start"),
        (["finetune.train=everything"], "is not one of full, lora"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(*more) == ConfigError.exit_code if "people" not in more[0] else finetune(*more) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and said in error[0], error
    assert not Path("r").exists()


def test_a_plan_says_what_is_trained(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["plan", *COMMON[1:], "optimizer=finetune", "data.name=tiny_texts", "finetune.train=lora"]
    assert run(line) == 0
    said = capsys.readouterr().out
    assert "part" in said and "trains 10 of 47 tensors" in said


@metrics.register("stop_early")
def stop_early(p: Any) -> float:
    """Presses Ctrl-C at the first look."""
    if not Path("stopped").exists():
        Path("stopped").touch()
        os.kill(os.getpid(), signal.SIGINT)
    return 0.0


@pytest.mark.parametrize("train", ["probe", "lora"])
def test_a_run_that_was_stopped_goes_on(train: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = [f"finetune.train={train}", "evaluation.every=1", "task.metrics=[accuracy,stop_early]"]
    assert finetune(*more) == 0
    assert read_json(Path("r", "result.json"))["status"] == "stopped"
    assert run(["finetune", "resume=r"]) == 0
    assert read_json(Path("r", "result.json"))["status"] == "finished" and verified("r").holds


def test_a_fine_tuned_model_is_audited_like_any_other() -> None:
    assert finetune("finetune.train=probe") == 0
    assert run(["audit", "run=r"]) == 0
    assert Path("r/internal/audit.json").is_file()


def test_jobs_side_by_side_on_private_rows_are_refused_unless_each_is_charged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = [w for w in COMMON if not w.startswith("run.dir")] + ["data.name=tiny_texts", "finetune.train=head"]
    private = ["++data.options.public=false", "run.purpose=trial", "ledger.epsilon_limit=30", "seed=0,1", "--multirun"]
    assert run([*line, *private]) == ConfigError.exit_code
    assert "a sweep over it is charged" in capsys.readouterr().err
    assert not Path("runs").exists()
    assert run([*line, *private, "tuning.strategy=composed"]) == 0
    assert len(list(Path("runs").iterdir())) == 2


def test_a_search_over_parts_and_rates_is_one_charge_and_its_winner_verifies() -> None:
    line = [w for w in COMMON if not w.startswith("run.dir")] + ["data.name=tiny_texts", "++data.options.public=false"]
    search = ["finetune.train=head,probe", "optimizer.lr=0.1,0.5", "--multirun", "tuning.strategy=random"]
    more = ["tuning.mean_trials=2", "run.dir=s", "run.purpose=trial", "ledger.epsilon_limit=1000"]
    assert run([*line, *search, *more]) == 0
    assert read_json(Path("s", "result.json"))["status"] == "finished" and verified("s").holds
    alone = ["finetune", *line[1:], "finetune.train=head", "run.dir=one", "run.purpose=debug"]
    assert run([*alone, "++data.options.public=true"]) == 0
    assert statement("s")["guarantee"]["epsilon"] > statement("one")["guarantee"]["epsilon"]


def test_a_search_does_not_go_on_from_a_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune("finetune.train=head", name="first") == 0
    line = [w for w in COMMON if not w.startswith(("run.dir", "model"))] + ["data.name=tiny_texts"]
    search = ["finetune.start=first", "optimizer.lr=0.1,0.5", "--multirun", "tuning.strategy=grid"]
    assert run([*line, *search]) == ConfigError.exit_code
    assert "set tuning.strategy=composed" in capsys.readouterr().err
