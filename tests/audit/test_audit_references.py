"""The reference tier on real runs: kept, taken up again, refused where it cannot work."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dptrain.audit.reference_store import ReferenceName, ReferenceStore, half
from dptrain.audit.tier import make_pool
from dptrain.compose import compose
from dptrain.config_audit import AuditSettings, seconds_of
from dptrain.data.source import Rows
from dptrain.errors import ConfigError
from recipes import audit, train

QUICK = ["data=digits", "model=mlp", "run.purpose=debug", "tracking=none", "privacy.expected_batch_size=64"]


def trained(folder: Path, *more: str) -> Path:
    train.run(compose("train", [*QUICK, f"run.dir={folder}", "privacy.epochs=2", *more]))
    return folder


def audited(folder: Path, *more: str) -> dict:
    audit.run(compose("audit", [f"run={folder}", "audit.fpr=[0.05]", *more]))
    return json.loads((folder / "internal" / "audit.json").read_text())


def test_references_are_kept_and_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = trained(tmp_path / "run", "privacy=off")
    first = audited(run, "audit.budget=20s", "audit.narrow=0.9")
    assert first["references"]["count"] == first["references"]["new"] >= 2
    assert first["references"]["count"] % 2 == 0
    assert first["ledger"] == {"noted": False, "why": "no account counts this run"}
    assert {group["by"] for group in first["references"]["exposed"]["groups"]} == {"class"}
    assert {"loss", "rmia", "bavaria", "lira_online", "lira_offline"} <= {a["name"] for a in first["attacks"]}
    assert first["tests"] == sum(len(attack["bounds"]) for attack in first["attacks"])
    files = sorted((run / "internal" / "references").glob("*.safetensors"))
    assert len(files) == first["references"]["count"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    again = audited(run, "audit.budget=1s", "audit.narrow=0.9")
    assert again["references"]["count"] >= first["references"]["count"]
    assert again["references"]["seeds"][: len(files)] == first["references"]["seeds"]
    settings = run / "internal" / "references" / "settings.json"
    settings.write_text(settings.read_text().replace('"run_id": "', '"run_id": "other'))
    with pytest.raises(ConfigError, match="another run"):
        audited(run, "audit.budget=5s")


def test_two_processes_at_once_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Hydra's launcher, each with its seed: no pair twice, no torn file; an audit afterwards attacks with all."""
    monkeypatch.chdir(tmp_path)
    run = trained(tmp_path / "run", "privacy=off")
    given = [f"run={run}", "audit.fpr=[0.05]", "audit.budget=15s", "audit.narrow=1e-6", "seed=3,4"]
    launcher = ["--multirun", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = subprocess.run(
        [sys.executable, "-c", "from dptrain.cli import main; main()", "audit", *given, *launcher],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    folder = run / "internal" / "references"
    files = sorted(path.name for path in folder.iterdir() if path.suffix != ".json")
    assert all(name.endswith(".safetensors") for name in files)  # nothing half written is left
    assert {name[:2] for name in files} == {"s3", "s4"}
    assert {name[-13] for name in files} == {"a", "b"} and len(files) % 2 == 0
    found = audited(run, "audit.budget=1s", "audit.narrow=1.0", "seed=3")["references"]
    assert found["count"] >= len(files)  # every file is read, and its mask is that of its name
    assert {entry["seed"] for entry in found["seeds"]} == {3, 4}


def test_references_of_a_private_run_are_trained_with_its_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = trained(tmp_path / "run", "privacy.epsilon=3")
    found = audited(run, "audit.budget=60s", "audit.narrow=0.9")
    assert found["references"]["count"] >= 2
    assert "clipping engine" in found["references"]["way"]
    assert found["rejected"] is False


def test_too_short_a_budget_says_how_much_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = trained(tmp_path / "run", "privacy=off", "privacy.epochs=200")
    with pytest.raises(ConfigError, match=r"takes about \d+ s.*set audit.budget=\d+s"):
        audited(run, "audit.budget=1s")


@pytest.mark.parametrize("budget", ["10", "ten minutes", "10 m", "-5m", "1e3s", "0s", "31h0m", "9999h", ""])
def test_unreadable_budgets_are_refused(budget: str) -> None:
    with pytest.raises(ConfigError, match=r"audit\.budget"):
        AuditSettings(budget=budget)


def test_budgets() -> None:
    assert [seconds_of(text) for text in ("90s", "10m", "0.5h", None)] == [90, 600, 1800, None]


def test_a_pool_needs_both_sides() -> None:
    rows = Rows(torch.zeros(5, 2), torch.zeros(5, dtype=torch.int64))
    nobody = Rows(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ConfigError, match="0 units"):
        make_pool(rows, nobody, 100, 0)
    pool = make_pool(rows, rows, 3, 0)
    assert int(pool.is_member.sum()) == 3
    assert len(pool.scored) == 6


def test_halves_share_the_pool() -> None:
    masks = torch.stack([half(0, pair, 101) for pair in range(50)])
    assert (masks.sum(dim=1) == 50).all()
    assert len({tuple(mask.tolist()) for mask in masks}) == 50


def test_a_store_keeps_whole_pairs_and_notices_damage(tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path / "r", {"run_id": "x"}, 10)
    names = store.missing(3, 2)
    assert [(name.pair, name.side) for name in names] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for name in names[:3]:
        store.save(name, {"w": torch.arange(4.0)})
    assert store.names() == names[:2]
    assert store.missing(3, 1) == names[2:]
    assert store.load(names[0])["w"].tolist() == [0, 1, 2, 3]
    (store.folder / names[0].file).write_bytes((store.folder / names[1].file).read_bytes())
    with pytest.raises(ConfigError, match="other rows"):
        store.load(names[0])
    (store.folder / names[0].file).write_bytes(b"torn")
    with pytest.raises(ConfigError, match="cannot be read"):
        store.load(names[0])
    assert len({ReferenceName(s, p, d).training_seed for s in (0, 1) for p in (0, 1) for d in (0, 1)}) == 8
    with pytest.raises(ConfigError, match="units differ"):
        ReferenceStore(tmp_path / "r", {"run_id": "x"}, 11)


@dataclass
class Interrupted:
    """A trainer that is stopped in its second stack."""

    stack: int
    digest: str = "d"
    ways: list[str] = field(default_factory=list)

    def train(self, included: Sequence[Tensor], seeds: Sequence[int], way: str) -> list[dict[str, Tensor]]:
        self.ways.append(way)
        if len(self.ways) == 2:
            raise KeyboardInterrupt
        return [{"weight": torch.zeros(2, 3), "bias": torch.zeros(2)} for _ in included]

    def speed(self, included: Sequence[Tensor], seeds: Sequence[int]) -> object:
        from types import SimpleNamespace

        return SimpleNamespace(
            stack=self.stack, way="of a stack", seconds=0.001, way_alone="of a pair", alone=0.001, why="as told"
        )


@pytest.mark.parametrize(("stack", "way", "ready"), [(1, "of a pair", 2), (4, "of a stack", 4)])
def test_what_is_ready_outlives_ctrl_c(tmp_path: Path, stack: int, way: str, ready: int) -> None:
    from types import SimpleNamespace

    from dptrain.audit.tier import reference_tier
    from dptrain.checkpoint.bundle import Bundle
    from dptrain.models.build import ModelSpec
    from dptrain.run_folder import RunFolder

    spec = ModelSpec(name="linear", raw_shape=(3,), input_shape=(3,), num_outputs=2, task="multiclass")
    bundle = Bundle(tmp_path, torch.nn.Linear(3, 2), spec, {})
    rows = Rows(torch.randn(20, 3), torch.arange(20) % 2)
    folder = RunFolder(tmp_path, "run")
    pool = make_pool(rows, rows, 100, 0)
    settings = SimpleNamespace(budget="60s", narrow=0.001, fpr=[0.1], confidence=0.95)
    trainer = Interrupted(stack)
    with pytest.raises(KeyboardInterrupt):
        reference_tier(folder, bundle, pool, trainer, settings, 0, 8)  # type: ignore[arg-type]
    assert trainer.ways == [way, way]
    assert len(list((tmp_path / "internal" / "references").glob("*.safetensors"))) == ready
