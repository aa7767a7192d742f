"""The two ends of a charged sweep: what a death between any two of its first acts costs, and what goes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from people import register_people

from dptrain.cli import run
from dptrain.errors import ConfigError
from dptrain.privacy import tuning as sealed
from dptrain.privacy.ledger import open_ledger
from dptrain.privacy.ledger_state import EntryState
from dptrain.privacy.tuning import Draws
from dptrain.run_folder import RunFolder, read_json
from dptrain.training import search, stages, tuning
from dptrain.training.budget import Budget

register_people("searched_people", 80, 40)


BASE = [
    "train",
    "data=own",
    "data.name=searched_people",
    "model=linear",
    "privacy.epsilon=null",
    "privacy.noise_multiplier=3",
    "privacy.epochs=null",
    "privacy.steps=4",
    "privacy.expected_batch_size=20",
    "tracking=none",
    "run.purpose=trial",
    "run.dir=s",
    "ledger.epsilon_limit=50",
    "optimizer.lr=0.1,0.5,1",
    "--multirun",
]
RANDOM = [*BASE, "tuning.strategy=random", "tuning.mean_trials=3"]
GRID = [*BASE, "tuning.strategy=grid"]


class Killed(BaseException):
    """A death that nothing catches."""


def dies(*_: Any, **__: Any) -> Any:
    raise Killed


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def entries() -> list[EntryState]:
    ledger = open_ledger(None)
    found = list(ledger.state.entries.values())
    ledger.close()
    return found


def stood_at() -> float:
    ledger = open_ledger(None)
    value = ledger.account("people").value
    ledger.close()
    return value


BOUNDARIES: dict[str, tuple[Any, str]] = {
    "before the folder": (RunFolder, "create"),
    "before the draw": (search, "draw_candidates"),
    "before the seal": (search, "seal"),
    "before the commit": (Budget, "intend"),
    "before the first trial": (tuning, "run_trial"),
}


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(p, marks=[pytest.mark.slow] if p in ("before the draw", "before the seal") else [])
        for p in BOUNDARIES
    ],
)
def test_a_death_at_any_boundary_loses_no_charge_and_draws_nothing_twice(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        holder, name = BOUNDARIES[place]
        patched.setattr(holder, name, dies)
        patched.setattr(Budget, "settle", lambda self, steps_done=None: None)  # the dead settle nothing
        with pytest.raises(Killed):
            run(RANDOM)
    (entry,) = entries()
    assert entry.is_open and stood_at() > 0  # what is open counts whole
    drawn = Path("s", "internal", "search.json")
    if place in ("before the commit", "before the first trial"):
        before = drawn.read_bytes()
        assert run(RANDOM) == 0
        assert drawn.read_bytes() == before
        (entry,) = entries()
        assert (entry.status, entry.charged_steps) == ("settled", 1)
        return
    assert not drawn.exists() and entry.committed_steps == 0
    assert run(RANDOM) == (0 if place == "before the folder" else 2)
    open_now = [entry for entry in entries() if entry.is_open]
    assert len(open_now) == 1  # the dead one still counts whole, until somebody says that it is dead
    assert run(["budget", "close", f"run={open_now[0].run_id}", "reason=dead"]) == 0
    assert not any(entry.is_open for entry in entries())


@pytest.mark.parametrize("arguments", [RANDOM, GRID], ids=["random", "grid"])
def test_a_folder_that_cannot_be_made_gives_the_reservation_back(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> Any:
        raise ConfigError("run.dir", "s", "cannot be made", "name another folder")

    monkeypatch.setattr(stages, "describe", refused)
    assert run(arguments) == 2
    (entry,) = entries()
    assert (entry.status, entry.charged_steps) == ("settled", 0)
    assert stood_at() == 0


def test_an_interrupted_grid_is_charged_for_the_runs_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = tuning.run_trial

    def stopped_in_the_second(*arguments: Any) -> Any:
        if arguments[3] == 1:
            raise KeyboardInterrupt
        return honest(*arguments)

    monkeypatch.setattr(tuning, "run_trial", stopped_in_the_second)
    assert run(GRID) == 130
    (entry,) = entries()
    assert (entry.status, entry.planned_steps, entry.charged_steps) == ("settled", 12, 8)


def test_a_grid_whose_runs_differ_in_their_steps_is_charged_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "run_trial", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    held = [a for a in GRID if not a.startswith("privacy.noise_multiplier")]
    assert run([*held, "privacy.noise_multiplier=3,4"]) == 130
    (entry,) = entries()
    assert (entry.status, entry.planned_steps, entry.charged_steps) == ("settled", 1, 1)


@pytest.mark.parametrize("arguments", [RANDOM, GRID], ids=["random", "grid"])
def test_the_curve_of_a_winner_says_what_the_whole_sweep_spent(arguments: list[str]) -> None:
    assert run(arguments) == 0
    records = [json.loads(line) for line in Path("s", "metrics.jsonl").read_text().splitlines()]
    total = read_json(Path("s", "statement.json"))["composition"]["total"]
    assert [record["budget_spent"] for record in records] == pytest.approx([total] * len(records), rel=1e-9)


def test_what_was_sealed_is_never_sealed_over(tmp_path: Path) -> None:
    path = tmp_path / "search.json"
    sealed.seal(path, Draws(((0,), (2,)), "one", "a", None, None))
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="drawn already"):
        sealed.seal(path, Draws(((1,),), "two", "b", None, None))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
