"""``dptrain bench`` from the command line: every experiment, private data unread, refusals in the table, time kept."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from dptrain.cli import run
from dptrain.compose import compose, config_dir
from dptrain.config_bench import BenchConfig

EXPERIMENTS = sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml"))
SOON = ["privacy.epsilon=null", "privacy.noise_multiplier=1", "privacy.epochs=null", "privacy.steps=4"]
LOCKED = """
from dptrain.data.source import Source, SourceInfo
from dptrain.registry import sources


@sources.register("locked")
def locked(config, seed):
    def load():
        raise AssertionError("a private row was asked for")

    info = SourceInfo(name="locked", task="binary", input_shape=(6,), num_classes=2, public_size=500, unit="user")
    return Source(info, load)
"""


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_can_be_timed_as_it_stands(name: str) -> None:
    timed, trained = compose("bench", [f"experiment={name}"]), compose("train", [f"experiment={name}"])
    assert isinstance(timed, BenchConfig)
    for part in ("data", "model", "privacy", "optimizer", "clipping", "execution", "task"):
        assert getattr(timed, part) == getattr(trained, part), part


def test_private_data_is_timed_without_a_purpose_an_account_or_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPTRAIN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(time, "monotonic", time.process_time)  # what else the machine does is not asked here
    Path("mine.py").write_text(LOCKED)
    own = ["imports=[mine]", "data=own", "data.name=locked", "model=mlp", "execution.physical_batch_size=64"]
    users = ["privacy.unit=user", "privacy.max_rows_per_unit=4", "privacy.expected_batch_size=16"]
    settings = ["bench.engines=[bookkeeping,opacus_ghost]", "bench.seconds=15", "format=json"]
    began = time.monotonic()
    assert run(["bench", *own, *users, *SOON, *settings]) == 0
    assert time.monotonic() - began < 30
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["private_rows_read"] == 0 and found["rows_per_unit"] == 4 and found["row"] == [6]
    timed = found["engines"]["bookkeeping"]
    assert 0 < timed["low"] <= timed["ratio"] <= timed["high"] and timed["ms"] > 0 and timed["pairs"] >= 3
    assert "units have several" in found["engines"]["opacus_ghost"]["refused"]
    assert found["bookkeeping"]["ways"][0]["parameter"].endswith("weight")
    assert found["bookkeeping"]["without_rule"] == {}
    assert found["largest_batch"]["rows"] >= 64
    assert found["costs"]["noise_secure_ms"] > 0
    assert "engine bookkeeping" in said.err
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__") == ["mine.py"]


def test_text_says_what_was_measured_and_keeps_to_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "monotonic", time.process_time)  # what else the machine does is not asked here
    small = ["execution.physical_batch_size=32", "bench.engines=[vmap]", "bench.seconds=10"]
    began = time.monotonic()
    assert run(["bench", "experiment=quickstart", *SOON, *small]) == 0
    assert time.monotonic() - began < 20
    text = capsys.readouterr().out
    for words in (
        "no private row was read and nothing was spent: benchmarking is free",
        "DP / plain",
        "peak memory",
        "as picked for each parameter",
        "every function that reads a parameter has a rule",
        "largest physical batch",
        "noise, secure",
        "accounting",
        "logging",
    ):
        assert words in text, words
    assert all(len(line) <= 120 for line in text.splitlines())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bench.second=3"], "is not a setting; did you mean 'bench.seconds'?"),
        (["bench.seconds=1"], "bench.seconds=1"),
        (["bench.engines=[ghost]"], "bench.engines=ghost"),
        (["format=xml"], "format=xml"),
        (["privacy=off"], "nothing to compare"),
        (["clipping.engine=opacus"], "opacus_hooks"),
    ],
)
def test_bad_settings_are_refused_in_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["bench", *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("dptrain: error: ") and said in error


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--help"]) == 0
    said = capsys.readouterr().out
    for words in ("dptrain bench", "seconds:", "engines:", "physical_batch_size", "experiment", "clipping_norm"):
        assert words in said, words
