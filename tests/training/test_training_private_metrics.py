"""Looks at private rows: one unit moves a count by at most one, looks are planned, and the best may be released."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from people import register_people
from torch import nn

from dptrain.cli import run
from dptrain.config_tuning import EvaluationConfig
from dptrain.data.source import Rows
from dptrain.data.units import hold_out
from dptrain.keystream import Keystream
from dptrain.privacy import accounting
from dptrain.privacy.ledger import open_ledger
from dptrain.privacy.verify import verified
from dptrain.run_folder import read_json
from dptrain.training.private_metrics import GRID, Best, PrivateAccuracy, unit_shares

PEOPLE = ["train", "data=own", "data.name=looked_at_people", "model=linear", "tracking=none"]
LOOK = ["evaluation.metrics=dp", "evaluation.every=2"]
SMALL = ["privacy.epochs=null", "privacy.steps=6", "privacy.expected_batch_size=20", "run.purpose=final"]

register_people("looked_at_people", 200, 60)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40),
    st.integers(0, 5),
    st.lists(st.booleans(), min_size=40, max_size=40),
)
def test_one_unit_moves_the_count_by_at_most_one(rows: list[tuple[int, bool]], unit: int, other: list[bool]) -> None:
    units, right = np.array([u for u, _ in rows]), np.array([r for _, r in rows])
    rows_of = np.bincount(units, minlength=6)
    changed = np.where(units == unit, other[: len(rows)], right)
    move = int(unit_shares(changed, units, rows_of).sum()) - int(unit_shares(right, units, rows_of).sum())
    assert abs(move) <= GRID
    assert unit_shares(right, units, rows_of).min() >= 0 and unit_shares(right, units, rows_of).max() <= GRID


class Sign(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def test_a_look_is_the_true_share_and_gaussian_noise_of_the_planned_deviation() -> None:
    """Mean and deviation of 2,000 looks within five standard errors: a correct law fails less than once in 10^5."""
    x = torch.tensor([[1.0], [1.0], [-1.0], [1.0]] * 25)
    y = torch.ones(100, dtype=torch.int64)
    looks = PrivateAccuracy(Rows(x, y), "binary", 10.0, 2000, 64, Keystream())
    seen = np.array([looks.look(Sign()) for _ in range(2000)])
    assert abs(seen.mean() - 0.75) < 5 * 0.1 / 2000**0.5
    assert abs(seen.std() - 0.1) < 5 * 0.1 / 4000**0.5
    with pytest.raises(RuntimeError, match="2000 planned"):
        looks.look(Sign())


def test_units_held_out_are_whole_and_chosen_by_place_alone() -> None:
    unit = torch.arange(100) // 2
    rows = Rows(torch.arange(100.0).unsqueeze(1), torch.zeros(100, dtype=torch.int64), unit)
    other = Rows(rows.inputs + 7, rows.targets + 1, unit)
    settings = EvaluationConfig(metrics="dp", private_fraction=0.2)
    trained, held = hold_out(rows, settings, seed=3)
    assert held is not None and held.num_units == 10 and len(held) == 20 and trained.num_units == 40
    assert sorted([*trained.inputs.flatten().tolist(), *held.inputs.flatten().tolist()]) == list(range(100))
    moved = hold_out(other, settings, seed=3)[1]
    assert moved is not None and torch.equal(moved.inputs, held.inputs + 7)
    assert hold_out(rows, EvaluationConfig(), seed=3) == (rows, None)


def test_the_best_look_is_put_back() -> None:
    module = Sign()
    best = Best(module, "loss", lower=True)
    for step, (scale, loss) in enumerate([(1.0, 0.9), (2.0, 0.3), (3.0, 0.5)]):
        module.scale.data.fill_(scale)
        best.offer({"step": step, "loss": loss})
    assert best.restore({"step": 2})["step"] == 1
    assert module.scale.item() == 2.0


def test_looks_are_in_the_plan_the_account_and_the_statement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["plan", *PEOPLE[1:], *SMALL, *LOOK]) == 0
    assert "3 noisy counts on private units" in capsys.readouterr().out
    account = ["ledger.epsilon_limit=20", "release.choose=best", "run.dir=r"]
    assert run([*PEOPLE, *SMALL, *LOOK, *account]) == 0
    statement, result = read_json(Path("r", "statement.json")), read_json(Path("r", "result.json"))
    look = accounting.self_composed(3, accounting.gaussian(20.0))
    assert look in statement["mechanism"]["event"]["events"]
    assert statement["sampling"]["rate"] == 20 / 180
    assert 2.9 < statement["guarantee"]["epsilon"] == result["epsilon"] <= 3.0
    assert "private_accuracy" in result["metrics"]
    assert verified("r")
    ledger = open_ledger(None)
    (entry,) = ledger.state.entries.values()
    assert (entry.status, entry.event) == ("settled", statement["mechanism"]["planned_event"])
    ledger.close()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["privacy.adjacency=add_remove", "data.public_size=200"], "holds units out by position"),
        (["privacy.steps=null", "privacy.noise_multiplier=2"], "plans its looks before"),
        (["evaluation.private_fraction=0.001"], "evaluation.private_fraction=0.001: holds out"),
        (["evaluation.noise_multiplier=0"], "evaluation.noise_multiplier=0.0: must be"),
        (["evaluation.metrics=pd"], "is not one of public, dp"),
        (["release.choose=bets"], "did you mean 'best'?"),
    ],
)
def test_looks_that_could_not_be_charged_are_refused(
    arguments: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {a.split("=")[0] for a in arguments}
    held = [a for a in [*PEOPLE, *SMALL, *LOOK] if a.split("=")[0] not in names]
    assert run([*held, *arguments, "run.dir=r"]) == 2
    assert text in capsys.readouterr().err
    assert not Path("r").exists()
