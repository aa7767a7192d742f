"""Bad input end to end: one line, the right exit code, nothing lost, or the run goes on as it must."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dptrain.cli import run
from dptrain.run_folder import read_json

PARTS = """
import torch
from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.registry import features, losses, models, sources

@sources.register("faulty")
def faulty(config, seed, poison: str = "", count: int = 200):
    x = torch.randn(count + 60, 4, generator=torch.Generator().manual_seed(3))
    y = (x[:, 0] > 0).long()
    if poison:
        x[3, 1] = float(poison)
    size = config.public_size or 200
    info = SourceInfo(name="faulty", task="binary", input_shape=(4,), num_classes=2, public_size=size)
    return Source(info, lambda: Splits(Rows(x[:count], y[:count]), Rows(x[count:], y[count:])))

@models.register("with_batchnorm")
def with_batchnorm(input_shape, num_outputs):
    return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, num_outputs))

@models.register("with_dropout")
def with_dropout(input_shape, num_outputs):
    return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Dropout(0.5), torch.nn.Linear(16, num_outputs))

class Standardised:
    version = "1"
    def __init__(self, shape):
        self.output_shape = shape
    def __call__(self, rows):
        return (rows - rows.mean(0)) / (1 + rows.abs().amax(0))

@features.register("standardised")
def standardised(input_shape):
    return Standardised(input_shape)

class Centre(torch.nn.Module):
    def forward(self, x):
        return x - x.mean(0)

@models.register("centred")
def centred(input_shape, num_outputs):
    return torch.nn.Sequential(Centre(), torch.nn.Linear(4, num_outputs))

@losses.register("averaged")
def averaged(outputs, targets):
    return torch.nn.functional.binary_cross_entropy_with_logits(outputs.squeeze(-1), targets.float())

@losses.register("sneaky")
def sneaky(outputs, targets):
    rows = torch.nn.functional.binary_cross_entropy_with_logits(outputs.squeeze(-1), targets.float(), reduction="none")
    return rows - rows.mean()
"""
BASE = [
    "imports=[faulty_parts.py]",
    "data=own",
    "data.name=faulty",
    "model=linear",
    "privacy.expected_batch_size=20",
    "privacy.epochs=1",
    "tracking=none",
    "run.purpose=trial",
    "ledger.epsilon_limit=1000",
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parts") / "faulty_parts.py"
    path.write_text(PARTS)
    return path


@pytest.fixture
def base(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return [f"imports=[{parts}]", *BASE[1:]]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """Runs, expects one line on stderr and the exit code; gives the line."""
    capsys.readouterr()
    assert run(arguments) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert said.startswith("dptrain: error: ")
    return said


def test_batchnorm_is_refused_by_name_and_the_fix_works(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    model = ["model=own", "model.name=with_batchnorm"]
    said = refused(["train", *base, *model], capsys)
    assert "'1' (BatchNorm1d)" in said
    assert "model.replace_batchnorm=true" in said
    assert not Path("runs").exists()
    assert run(["train", *base, *model, "model.replace_batchnorm=true"]) == 0


def test_dropout_is_refused_in_private_training_only(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Its masks come from the published seed and go by place: one unit less would move all the others."""
    model = ["model=own", "model.name=with_dropout"]
    assert "dropout" in refused(["train", *base, *model], capsys)
    assert run(["train", *base, *model, "privacy=off", "ledger.uri=none", "privacy.epochs=1", "run.dir=off"]) == 0


def test_a_feature_map_that_looks_at_other_rows_is_refused(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "other rows" in refused(["train", *base, "model.features=standardised"], capsys)


def test_a_run_folder_cannot_name_code(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A config.yaml handed over with a checkpoint names a file; audit must not run it."""
    assert run(["train", "experiment=quickstart", "tracking=none", "privacy.epochs=1", "run.dir=r"]) == 0
    Path("evil.py").write_text("open('ran', 'w').write('x')\n")
    config = Path("r/config.yaml")
    config.write_text(config.read_text().replace("imports: []", "imports: [evil.py]"))
    assert "cannot name code" in refused(["audit", "run=r"], capsys)
    assert not Path("ran").exists()


def test_a_run_folder_cannot_name_a_server(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """result.json names an address; nothing is sent there unless the user names it too."""
    assert run(["train", "experiment=quickstart", "tracking=none", "privacy.epochs=1", "run.dir=r"]) == 0
    result = read_json(Path("r/result.json")) | {"mlflow_run_id": "x", "tracking_uri": "http://127.0.0.1:9"}
    Path("r/result.json").write_text(json.dumps(result))
    for command in ("audit", "report"):
        capsys.readouterr()
        assert run([command, "run=r"]) == 0
        assert "not copied to http://127.0.0.1:9" in capsys.readouterr().err


def test_a_layer_that_mixes_units_by_hand_is_refused(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "centred" in refused(["train", *base, "model=own", "model.name=centred"], capsys)


@pytest.mark.parametrize("loss", ["averaged", "sneaky"])
def test_a_loss_that_averages_is_refused(base: list[str], loss: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"task.loss={loss}" in refused(["train", *base, f"task.loss={loss}"], capsys)


@pytest.mark.parametrize("poison", ["inf", "-inf", "nan", "1e38"])
@pytest.mark.parametrize("engine", ["vmap", "opacus_hooks", "opacus_ghost", "loop"])
def test_one_bad_row_weighs_nothing_and_the_run_goes_on(
    base: list[str], poison: str, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"data.options.poison='{poison}'", f"clipping.engine={engine}", "privacy.epochs=5", "run.dir=p"]
    assert run(["train", *base, *arguments]) == 0
    result = read_json(Path("p/result.json"))
    assert result["status"] == "finished"
    assert result["metrics"]["public_loss"] < 5
    assert result["metrics"]["test_accuracy"] > 0.6


def test_a_folder_in_use_is_never_written_to(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("busy").mkdir()
    Path("busy/precious").write_text("x")
    assert "run.dir" in refused(["train", *base, "run.dir=busy"], capsys)
    assert [p.name for p in Path("busy").iterdir()] == ["precious"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_disk_is_refused(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("closed").mkdir(mode=0o500)
    assert "run.dir" in refused(["train", *base, "run.dir=closed/run"], capsys)


def test_a_file_where_the_folder_should_be(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("x")
    assert "run.dir" in refused(["train", *base, "run.dir=file/run"], capsys)


def test_a_run_that_was_damaged_is_not_attacked(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", *base, "run.dir=r"]) == 0
    weights = Path("r/checkpoint/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-2] ^= 1
    weights.write_bytes(bytes(data))
    assert "model.safetensors" in refused(["audit", "run=r", base[0]], capsys, code=4)


def test_other_rows_than_the_runs_are_not_attacked(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", *base, "run.dir=r"]) == 0
    config = Path("r/config.yaml")
    config.write_text(config.read_text().replace("options: {}", "options:\n    poison: '0.5'", 1))
    assert "not those" in refused(["audit", "run=r", base[0]], capsys)


@pytest.mark.parametrize("command", ["audit", "report"])
def test_runs_that_are_none(command: str, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such folder" in refused([command, "run=nowhere"], capsys)
    Path("empty").mkdir()
    assert "not a finished run" in refused([command, "run=empty"], capsys)
    assert "is needed" in refused([command], capsys)
    Path("junk").mkdir()
    Path("junk/result.json").write_bytes(b"\x80\x04junk")
    assert "cannot be read" in refused([command, "run=junk"], capsys)


def test_a_leak_is_rejected_with_its_own_exit_code(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Scores that tell every member, under an honestly signed claim of epsilon 0.1: the audit exits with 4."""
    learn = ["data.options.count=2000", "data.public_size=2000", "privacy.epsilon=0.1", "run.dir=leak"]
    assert run(["train", *base, *learn]) == 0
    # The attack is handed scores that tell every member: what matters here is what the recipe does with them.
    import numpy as np

    from dptrain.audit import stages

    held = stages._outputs
    try:
        stages._outputs = lambda subject, rows: (
            np.where(rows.targets.numpy()[:, None] > 0, 1.0, -1.0) * (9.0 if len(rows) > 100 else 0.1)
        )
        said = refused(["audit", "run=leak", base[0]], capsys, code=4)
    finally:
        stages._outputs = held
    assert "contradicts" in said
    assert read_json(Path("leak/internal/audit.json"))["rejected"] is True


@pytest.mark.parametrize("words", [["hydra.job.name=range(9223372034854775807)"], ["seed=range(0,1e300)", "--multirun"],
                                   ["optimizer.lr=shuffle(range(99999999999))", "-m"]])  # fmt: skip
@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_range_without_end_is_refused_before_it_fills_the_memory(
    command: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([command, "experiment=quickstart", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("dptrain: error: ") and said.count("\n") == 1 and len(said) < 400


@pytest.mark.parametrize("group", ["model", "data"])
@pytest.mark.parametrize("command", ["train", "plan", "bench", "conform"])
def test_own_without_a_name_is_refused_and_never_something_else(
    base: list[str], group: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was the default: digits, or the MLP, in place of what the user meant."""
    said = refused([command, "privacy.epochs=1", f"{group}=own"], capsys)
    assert f"{group}.name" in said and f"is needed with {group}=own" in said


@pytest.mark.parametrize("command", ["train", "plan", "bench"])
def test_a_batch_beyond_all_memory_is_one_line(
    base: list[str], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([command, "experiment=quickstart", "tracking=none", "execution.physical_batch_size=1000000000000"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("dptrain: error: execution.physical_batch_size=1000000000000: does not fit")
