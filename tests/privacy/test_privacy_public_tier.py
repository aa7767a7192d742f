"""Invariant 7: two data sets that differ in one unit leave the same shapes and sizes in the public tier.

Also: nothing computed from private rows, and no key, is found in what may leave the building.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from dptrain.cli import run
from dptrain.run_folder import read_json

NUMBER = itertools.count()
SOURCE = """
import torch
from dptrain.data.source import Rows, Source, SourceInfo, Splits
from dptrain.registry import sources

@sources.register("{name}")
def {name}(config, seed):
    def rows(count):
        return Rows(torch.randn(count, 4, generator=torch.Generator().manual_seed(1)), torch.arange(count) % 2)
    size = config.public_size or 300
    info = SourceInfo(name="ward", task="binary", input_shape=(4,), num_classes=2, public_size=size)
    return Source(info, lambda: Splits(rows({size}), rows(50)))
"""


REST = ["tracking=none", "run.purpose=final", "ledger.uri=none"]


def train(folder: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    name = f"ward_{next(NUMBER)}"  # a name is registered once a process
    folder.mkdir()
    (folder / f"{name}.py").write_text(SOURCE.format(name=name, size=size))
    monkeypatch.chdir(folder)
    arguments = [
        f"imports=[{name}.py]",
        "data=own",
        f"data.name={name}",
        "data.public_size=300",
        "model=linear",
        "privacy.adjacency=add_remove",
        "privacy.expected_batch_size=40",
        "privacy.epochs=2",
        "tracking=none",
        "run.id=same",
        "run.purpose=final",
        "ledger.uri=sqlite:///ledger.db",
        "ledger.account=ward",
        "ledger.epsilon_limit=20",
        "ledger.lease_steps=1",  # else the number of rows, named by the ledger's head, depends on the machine's speed
    ]
    assert run(["train", *arguments]) == 0
    return folder / "runs" / "same"


def _without_chance(statement: dict[str, Any]) -> dict[str, Any]:
    """A statement without its time, and without what a ledger or a self-check draws at random for itself."""
    composition = statement.get("composition")
    if composition:
        statement["composition"] = composition | {"ledger_id": None, "head": None}
    watched = statement["selfcheck"]
    statement["selfcheck"] = watched | {"smallest_p": None, "noise_ratio": None, "noise_interval": None}
    statement["identity"] = statement["identity"] | {"created": None}
    statement["artifact"] = statement["artifact"] | {"files": sorted(statement["artifact"]["files"])}
    return {key: value for key, value in statement.items() if key != "integrity"}


def test_one_unit_more_changes_no_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (train(tmp_path / str(size), size, monkeypatch) for size in (300, 301))
    plans = [read_json(folder / "plan.json") for folder in (one, other)]
    assert plans[0] == plans[1]
    for name in ("model.safetensors", "model.json", "statement.json", "manifest.json", "signature.json"):
        assert (one / "checkpoint" / name).stat().st_size == (other / "checkpoint" / name).stat().st_size, name
    logs = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (one, other)]
    assert [list(record) for record in logs[0]] == [list(record) for record in logs[1]]
    assert [record["step"] for record in logs[0]] == [record["step"] for record in logs[1]]
    statements = [_without_chance(read_json(f / "checkpoint" / "statement.json")) for f in (one, other)]
    assert statements[0] == statements[1]
    results = [read_json(f / "result.json") for f in (one, other)]
    assert list(results[0]) == list(results[1])


def test_under_zero_out_the_declared_size_must_be_the_real_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "w.py").write_text(SOURCE.format(name="ward_wrong", size=301))
    monkeypatch.chdir(tmp_path)
    assert run(["train", "imports=[w.py]", "data=own", "data.name=ward_wrong", "model=linear", *REST]) == 2
    said = capsys.readouterr().err
    assert "data.public_size=301" in said
    assert not (tmp_path / "runs").exists()


def test_the_public_files_hold_no_internal_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = train(tmp_path / "300", 300, monkeypatch)
    internal = [json.loads(line) for line in (folder / "internal" / "metrics.jsonl").read_text().splitlines()]
    public = "".join(
        path.read_text(errors="replace")
        for path in [*folder.glob("*.json*"), *(folder / "checkpoint").glob("*.json"), folder / "config.yaml"]
    )
    for name in ('batch_size": ', "clipped_share", "member_loss", "salt"):
        assert name not in public.replace("expected_batch_size", "")
    for record in internal:
        assert str(record["member_loss"]) not in public
    manifest = read_json(folder / "internal" / "manifest.json")
    assert manifest["digest"] not in public
    assert manifest["salt"] not in public


def test_everything_is_for_the_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = train(tmp_path / "300", 300, monkeypatch)
    assert folder.stat().st_mode & 0o077 == 0
    for path in folder.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
