"""A run's side of the ledger: classes, order of commit and noise, leases, settling on every way out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dptrain.cli import run
from dptrain.config import PrivacyConfig, TrainConfig
from dptrain.data.source import Rows, SourceInfo
from dptrain.errors import BudgetRefused, ConfigError
from dptrain.keystream import Keystream
from dptrain.privacy.ledger import open_ledger
from dptrain.privacy.plan import Plan, compile_plan
from dptrain.run_folder import read_json
from dptrain.training.assemble import build_trainer
from dptrain.training.budget import Budget, check_purpose, open_account, reserve
from dptrain.training.loop import Trainer

INFO = SourceInfo(name="ward", task="multiclass", input_shape=(4,), num_classes=3, public_size=40)
DIGEST = "cd" * 32


def settings(folder: Path, limit: float = 50.0, lease: int | None = 4) -> tuple[TrainConfig, Plan]:
    config = TrainConfig(
        privacy=PrivacyConfig(expected_batch_size=10, noise_multiplier=4.0, epsilon=None, epochs=None, steps=10)
    )
    uri = f"sqlite:///{folder / 'ledger.db'}"
    config.ledger = replace(config.ledger, uri=uri, epsilon_limit=limit, lease_steps=lease)
    config.run = replace(config.run, purpose="final")
    return config, compile_plan(config.privacy, 40)


def begin(config: TrainConfig, plan: Plan, run_id: str = "r1") -> Budget:
    return reserve(open_account(config, "final"), config, INFO, plan, DIGEST, run_id, "final")


def entry(config: TrainConfig, run_id: str = "r1") -> dict[str, object]:
    state = open_ledger(config.ledger.uri).state
    return next(e.to_json() for e in state.entries.values() if e.run_id == run_id)


def trainer(plan: Plan, config: TrainConfig, budget: Budget) -> Trainer:
    rows = Rows(torch.randn(40, 4), torch.randint(0, 3, (40,)))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    return build_trainer(config, plan, nn.Linear(4, 3), rows, loss, Keystream(), budget.intend)


def test_every_step_is_on_record_before_its_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, plan = settings(tmp_path)
    with begin(config, plan) as budget:
        built = trainer(plan, config, budget)
        assert built.noise is not None
        pieces, seen = built.noise.pieces, []

        def watched(step: int, count: int) -> Iterator[Tensor]:
            seen.append((step + 1, entry(config)["committed_steps"]))
            return pieces(step, count)

        monkeypatch.setattr(built.noise, "pieces", watched)
        outcome = built.run(lambda done, report, seconds: None)
        budget.settle(outcome.steps_done)
    assert [step for step, _ in seen] == list(range(1, 11))
    assert all(committed >= step for step, committed in seen)
    assert [committed for _, committed in seen] == [4, 4, 4, 4, 8, 8, 8, 8, 10, 10]
    assert (entry(config)["status"], entry(config)["steps_done"]) == ("settled", 10)


def test_an_error_between_settles_what_was_intended(tmp_path: Path) -> None:
    config, plan = settings(tmp_path)

    def struck() -> None:
        with begin(config, plan) as budget:
            budget.intend(1)
            budget.intend(2)
            raise RuntimeError("lightning")

    with pytest.raises(RuntimeError, match="lightning"):
        struck()
    assert (entry(config)["status"], entry(config)["steps_done"]) == ("settled", 2)


def test_fewer_steps_than_intended_are_never_settled(tmp_path: Path) -> None:
    config, plan = settings(tmp_path)
    with begin(config, plan) as budget:
        for step in (1, 2, 3):
            budget.intend(step)
        budget.settle(1)
    assert entry(config)["steps_done"] == 3


def test_a_closed_entry_stops_the_run_at_its_next_commit(tmp_path: Path) -> None:
    config, plan = settings(tmp_path, lease=1)

    def go_on() -> None:
        with begin(config, plan) as budget:
            budget.intend(1)
            open_ledger(config.ledger.uri).abandon("r1", "thought dead")
            budget.intend(2)

    with pytest.raises(BudgetRefused):
        go_on()
    assert (entry(config)["status"], entry(config)["steps_done"]) == ("abandoned", 1)


def test_a_plan_beyond_the_limit_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    config, plan = settings(tmp_path, limit=1.6)
    begin(config, plan).settle(0)
    spent = 0

    def spend() -> None:
        nonlocal spent
        with begin(config, plan, f"r{spent + 2}") as budget:
            for step in range(1, 11):
                budget.intend(step)
        spent += 1

    def spend_all() -> None:
        for _ in range(500):
            spend()

    with pytest.raises(BudgetRefused):
        spend_all()
    assert spent > 0
    ledger = open_ledger(config.ledger.uri)
    assert not ledger.state.open_entries(f"r{spent + 2}")
    assert ledger.totals("ward", pld=False).epsilon <= 1.6


def test_the_standing_that_metrics_show_is_that_of_the_ledger(tmp_path: Path) -> None:
    config, plan = settings(tmp_path)
    for run_id in ("r1", "r2"):
        with begin(config, plan, run_id) as budget:
            for step in range(1, 8):
                budget.intend(step)
            standing = budget.standing(7)
        total = open_ledger(config.ledger.uri).totals("ward", pld=False).epsilon
        assert standing is not None and standing == (pytest.approx(total, abs=1e-12), 50.0)


def test_a_run_without_a_ledger_has_none(tmp_path: Path) -> None:
    config, _ = settings(tmp_path)
    config.ledger.uri = "none"
    assert open_account(config, "final") is None
    budget = Budget()
    budget.intend(1)
    assert budget.standing(1) is None and budget.composition(1.0) is None and not budget.is_kept


def test_classes(tmp_path: Path) -> None:
    config, _ = settings(tmp_path)
    config.run.purpose = None
    with pytest.raises(ConfigError, match=r"run\.purpose"):
        check_purpose(config, INFO)
    assert check_purpose(config, replace(INFO, is_public=True)) == "debug"
    config.run.purpose = "debug"
    with pytest.raises(ConfigError, match="public or synthetic"):
        check_purpose(config, INFO)
    config.data.all_public = True
    assert check_purpose(config, INFO) == "debug"
    config.data.all_public, config.run.purpose = False, "trial"
    assert check_purpose(config, INFO) == "trial"
    config.privacy.mechanism = "none"
    with pytest.raises(ConfigError, match="without bound"):
        check_purpose(config, INFO)


def test_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Digits, counted as if they were private: spends, shows, and is refused with exit code 3 when nothing fits."""
    monkeypatch.chdir(tmp_path)
    command = ["train", "privacy.epochs=2", "tracking=none", "run.purpose=final", "ledger.account=people"]
    assert run([*command, "ledger.epsilon_limit=4.5", "run.id=one"]) == 0
    last = (tmp_path / "runs" / "one" / "metrics.jsonl").read_text().splitlines()[-1]
    assert '"budget_spent"' in last and '"budget_remaining"' in last
    composition = read_json(tmp_path / "runs" / "one" / "statement.json")["composition"]
    assert composition["account"] == "people" and composition["total"] <= 4.5 and composition["prior"] == 0.0
    codes = [run([*command, f"run.id=more{number}"]) for number in range(4)]
    assert 3 in codes and codes[codes.index(3) :] == [3] * (4 - codes.index(3))
    assert not (tmp_path / "runs" / f"more{codes.index(3)}").exists()
    assert "budget" in capsys.readouterr().err
