"""Every shipped config composes to a typed one; every experiment runs small, end to end, where its data is at hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dptrain.cli import run
from dptrain.compose import compose, config_dir
from dptrain.config import TrainConfig
from dptrain.run_folder import read_json

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml"))
GROUPS = ["data", "model", "optimizer", "privacy", "tracking"]
SMALL = ["privacy.epochs=null", "privacy.steps=2", "privacy.expected_batch_size=8", "execution.physical_batch_size=8"]


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


@pytest.mark.parametrize("choice", [f"{group}={name}" for group in GROUPS for name in options(group)])
def test_every_group_option_composes(choice: str) -> None:
    group, _, name = choice.partition("=")
    named = [f"{group}.name=mine"] if name == "own" else []  # without it: tests/faults/test_faults_bad_input.py
    assert isinstance(compose("train", [choice, *named]), TrainConfig)


def command_of(name: str) -> str:
    """train or finetune: the launch command on the file's second line."""
    lines = (config_dir() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return "finetune" if lines[1].startswith("# dptrain finetune ") else "train"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_says_how_to_launch_it(name: str) -> None:
    assert isinstance(compose(command_of(name), [f"experiment={name}"]), TrainConfig)
    lines = (config_dir() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith(f"# dptrain {command_of(name)} experiment={name}")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs_small(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(command_of(name), [f"experiment={name}"])
    if config.finetune.train == "probe":
        pytest.skip("features of the whole set by the frozen body take minutes; see docs/results/")
    if config.data.name != "digits":
        folder = ROOT / "data" / config.data.name
        if not folder.is_dir():
            pytest.skip(f"data/{config.data.name} is not fetched: bash scripts/fetch_data.sh {config.data.name}")
        if config.model.features == "scatter":
            pytest.skip("scatter features of the whole set take minutes; see docs/results/")
    if config.data.text.tokenizer is not None and "/" in config.data.text.tokenizer:
        pytest.skip("its tokenizer is made by a command of its own: docs/results/lm_finetune.md")
    monkeypatch.chdir(tmp_path)
    path = [] if config.data.name == "digits" else [f"data.path={ROOT / 'data' / config.data.name}"]
    single = ["hydra.mode=RUN"] if name == "digits_epsilons" else []
    arguments = [command_of(name), f"experiment={name}", *SMALL, *path, *single, "tracking=none", "run.dir=here"]
    assert run(arguments) == 0
    result = read_json(tmp_path / "here" / "result.json")
    assert result["status"] == "finished"
    assert result["steps"] == 2
    assert 0 < result["epsilon"] <= config.privacy.epsilon


def test_the_whole_way_on_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Train, audit, report as the quickstart does, with tracking on: everything the contract promises is there."""
    monkeypatch.chdir(tmp_path)
    assert run(["train", "experiment=quickstart", "run.dir=runs/q", "privacy.epochs=10"]) == 0
    assert run(["audit", "run=runs/q"]) == 0
    capsys.readouterr()
    assert run(["report", "run=runs/q"]) == 0
    last = capsys.readouterr().out.rstrip().splitlines()[-6:]
    labels = ["public split", "privacy", "attack", "checkpoint", "report", "watch"]
    assert [line[: len(label)] for line, label in zip(last, labels, strict=True)] == labels
    folder = tmp_path / "runs" / "q"
    for name in ("config.yaml", "plan.json", "metrics.jsonl", "statement.json", "result.json", "report.html"):
        assert (folder / name).is_file(), name
    assert {p.name for p in (folder / "checkpoint").iterdir()} == {
        "model.safetensors",
        "model.json",
        "statement.json",
        "manifest.json",
        "signature.json",
    }
    result, plan = read_json(folder / "result.json"), read_json(folder / "plan.json")
    assert result["epsilon"] == plan["epsilon"] <= 3.0
    assert result["metrics"]["test_accuracy"] > 0.6
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all({"step", "epsilon", "test_accuracy", "public_loss"} <= set(r) for r in records)
    assert records[-1]["epsilon"] == plan["epsilon"]

    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    logged = client.get_run(result["mlflow_run_id"])
    assert logged.info.status == "FINISHED"
    steps = {
        name: [m.step for m in client.get_metric_history(result["mlflow_run_id"], name)]
        for name in ("epsilon", "test_accuracy", "public_loss")
    }
    assert steps["epsilon"] == steps["test_accuracy"] == steps["public_loss"] == [r["step"] for r in records]
    names = {item.path for item in client.list_artifacts(result["mlflow_run_id"])}
    assert {"statement.json", "plan.json", "checkpoint", "report.public.html"} <= names
    assert not any("audit" in name for name in names)


def test_the_same_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np
    from sklearn.datasets import load_digits

    import dptrain

    monkeypatch.chdir(tmp_path)
    result = dptrain.train(["experiment=quickstart", "tracking=none", "privacy.epochs=8"])
    model = dptrain.load(result["folder"])
    assert "differentially private" in model.statement["sentence"]
    pixels, labels = load_digits(return_X_y=True)
    images = pixels.astype(np.float32).reshape(-1, 1, 8, 8) / 8 - 1
    predicted = model.predict(images)
    assert predicted.shape == (1797,)
    assert (predicted == labels).mean() > 0.5
    with pytest.raises(ValueError, match="shape"):
        model.predict(images[:, :, :4])


def test_privacy_off_is_stamped_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["experiment=quickstart", "privacy=off", "tracking=none", "run.dir=off", "privacy.epochs=2"]
    assert run(["train", *arguments]) == 0
    folder = tmp_path / "off"
    assert read_json(folder / "result.json")["private"] is False
    assert read_json(folder / "result.json")["epsilon"] is None
    assert read_json(folder / "checkpoint" / "statement.json")["private"] is False
    assert "no privacy" in read_json(folder / "statement.json")["sentence"]
    assert all("epsilon" not in json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())


def test_a_sweep_through_the_joblib_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers at once on a fresh store: both runs arrive."""
    import subprocess
    import sys

    arguments = ["train", "experiment=quickstart", "privacy.epsilon=1,8", "privacy.epochs=1", "--multirun"]
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    program = "import sys; from dptrain.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments, *launcher], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    results = [read_json(path / "result.json") for path in (tmp_path / "runs").iterdir()]
    assert sorted(round(result["epsilon"]) for result in results) == [1, 8]
    assert all(result["mlflow_run_id"] for result in results)
