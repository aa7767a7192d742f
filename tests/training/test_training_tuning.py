"""A charged sweep from the command line: one entry, a sealed room, nothing drawn twice, refusals before spending."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from people import register_people

from dptrain.cli import run
from dptrain.privacy import accounting
from dptrain.privacy import tuning as sealed
from dptrain.privacy.ledger import open_ledger
from dptrain.privacy.verify import verified
from dptrain.run_folder import read_json
from dptrain.sweep import requested
from dptrain.training import tuning
from dptrain.training.setup import prepare

register_people("tuned_people", 200, 60)


BASE = [
    "data=own",
    "data.name=tuned_people",
    "model=linear",
    "privacy.epsilon=null",
    "privacy.noise_multiplier=3",
    "privacy.epochs=null",
    "privacy.steps=4",
    "privacy.expected_batch_size=20",
    "tracking=none",
]
PRIVATE = [*BASE, "run.purpose=final", "ledger.epsilon_limit=50"]
RANDOM = ["--multirun", "tuning.strategy=random", "tuning.mean_trials=3", "optimizer.lr=0.1,0.5,1"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def with_trials(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(sealed, "draw_trials", lambda trials, stream: number)


def outside(folder: Path) -> dict[str, str]:
    """Text of every file that is not sealed, weights left out."""
    files = [p for p in folder.rglob("*") if p.is_file() and "internal" not in p.relative_to(folder).parts]
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(files) if p.suffix != ".safetensors"}


def keys(node: Any) -> Any:
    """The shape of JSON data: its keys, with every value's type in place of the value."""
    if isinstance(node, dict):
        return {name: keys(value) for name, value in node.items()}
    return [keys(value) for value in node] if isinstance(node, list) else type(node).__name__


def test_a_search_is_one_entry_and_its_statement_verifies(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", *PRIVATE, *RANDOM, "run.dir=s"]) == 0
    told = capsys.readouterr().err
    statement, plan, result = (read_json(Path("s", f"{n}.json")) for n in ("statement", "plan", "result"))
    assert statement["mechanism"]["event"]["type"] == "repeat_and_select"
    block = statement["tuning"]
    assert block["epsilon_before"] < block["epsilon_after"] == statement["guarantee"]["epsilon"]
    assert plan["epsilon"] == result["epsilon"] == block["epsilon_after"]
    assert f"{block['epsilon_before']:.4f}" in told and f"{block['epsilon_after']:.4f}" in told
    records = [json.loads(line) for line in Path("s", "metrics.jsonl").read_text().splitlines()]
    assert {record["epsilon"] for record in records} == {plan["epsilon"]}
    assert verified("s")
    ledger = open_ledger(None)
    (entry,) = ledger.state.entries.values()
    assert (entry.status, entry.run_id) == ("settled", result["run_id"])
    assert entry.event == statement["mechanism"]["event"]
    assert ledger.account("people").value >= block["epsilon_after"]
    ledger.close()


def test_nothing_outside_the_sealed_room_depends_on_how_many_trials_there_were(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    for number in (1, 4):
        with_trials(monkeypatch, number)
        arguments = [a for a in BASE if a != "tracking=none"] + ["run.purpose=final", "ledger.uri=none"]
        to = ["tracking.uri=sqlite:///mlflow.db", f"tracking.experiment=k{number}"]
        assert run(["train", *arguments, *RANDOM, f"run.dir=k{number}", *to]) == 0
        said = capsys.readouterr()
        files = outside(Path(f"k{number}"))
        shapes = {name: keys(json.loads(text)) for name, text in files.items() if name.endswith(".json")}
        lines = len(files["metrics.jsonl"].splitlines())
        seen.append((sorted(files), shapes, lines, len(said.out.splitlines()), len(said.err.splitlines())))
        assert len(list(Path(f"k{number}", "internal", "trials").iterdir())) == number
        from mlflow.tracking import MlflowClient

        client = MlflowClient("sqlite:///mlflow.db")
        runs = client.search_runs([e.experiment_id for e in client.search_experiments() if e.name == f"k{number}"])
        assert len(runs) == 1
        seen[-1] += (sorted(runs[0].data.params), sorted(runs[0].data.tags), sorted(runs[0].data.metrics))
    assert seen[0] == seen[1]
    assert Path("k4", "internal").stat().st_mode & 0o777 == 0o700
    assert Path("k4", "internal", "trials").stat().st_mode & 0o777 == 0o700


def test_the_name_of_a_search_holds_no_time_of_launch() -> None:
    """Beside the date of the statement it would tell how long the search took, and so about how many trials it made."""
    assert run(["train", *PRIVATE, *RANDOM, "run.dir=s"]) == 0
    name = read_json(Path("s", "statement.json"))["identity"]["run_id"]
    assert name.startswith("search-") and len(name) == len("search-") + 12


def test_the_metrics_are_those_of_the_look_that_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    from dptrain.training.private_metrics import Best

    monkeypatch.setattr(Best, "restore", lambda self, last: {"step": 2, "seconds": 0.0, "test_accuracy": 0.125})
    assert run(["train", *PRIVATE, *RANDOM, "run.dir=s", "release.choose=best"]) == 0
    assert read_json(Path("s", "result.json"))["metrics"] == {"test_accuracy": 0.125}


def test_a_search_judged_by_noisy_looks_pays_for_them_in_every_trial(capsys: pytest.CaptureFixture[str]) -> None:
    look = ["evaluation.metrics=dp", "evaluation.every=2"]
    assert run(["train", *PRIVATE, *RANDOM, *look, "run.dir=s", "release.choose=best"]) == 0
    trial = read_json(Path("s", "statement.json"))["mechanism"]["event"]["event"]
    looks = accounting.self_composed(2, accounting.gaussian(20.0))
    assert trial["type"] == "composed" and looks in trial["events"]
    made = read_json(Path("s", "internal", "trials", "00000", "score.json"))
    assert made["score"] == made["record"]["private_accuracy"]
    assert verified("s")


def test_jobs_of_one_sweep_share_a_name_in_the_ledger_and_a_bar_of_the_report() -> None:
    from dptrain.report.budget_facts import bars
    from dptrain.report.budget_read import read_budget

    trial = [a for a in PRIVATE if not a.startswith("run.purpose")] + ["run.purpose=trial"]
    assert run(["train", *trial, "tuning.strategy=composed", "optimizer.lr=0.1,1", "--multirun"]) == 0
    assert run(["train", *trial, *RANDOM, "run.dir=s", "tuning.label=second try"]) == 0
    assert run(["train", *trial, "run.dir=single"]) == 0
    names = [bar["name"] for bar in bars(read_budget(None, "people", Path("runs"))[0])]
    assert len(names) == 3 and names[0].startswith("sweep ") and names[0].endswith("(2 entries)")
    assert names[1] == "second try" and not names[2].startswith("sweep")


def test_a_composed_sweep_says_what_it_costs_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    request = requested(["optimizer.lr=0.1,1", *PRIVATE, "tuning.strategy=composed", "--multirun"])
    assert request is not None and tuning.check_request(request) is False
    told = capsys.readouterr().err
    event = prepare(request.sweep.config((0,)), check_folder=False).plan.mechanism
    assert event is not None
    both = accounting.epsilon(accounting.composed([event.event()] * 2), 1e-5)
    one, together = (float(re.findall(rf"{label} +epsilon ([0-9.]+)", told)[0]) for label in ("one run", "together"))
    assert together == pytest.approx(both, rel=0.02) and one < together
    assert "2 runs" in told and "each is charged for itself" in told


def test_a_crash_draws_nothing_anew_and_repeats_no_finished_trial(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_trials(monkeypatch, 4)
    honest, made = tuning.run_trial, []

    def dies_in_the_third(search: Any, rows: Any, folder: Any, number: int, combination: Any) -> Any:
        if number == 2:
            room = tuning.trial_folder(folder, number)
            room.create()
            (room.path / "model.safetensors").write_text("half")
            raise KeyboardInterrupt
        made.append(number)
        return honest(search, rows, folder, number, combination)

    monkeypatch.setattr(tuning, "run_trial", dies_in_the_third)
    assert run(["train", *PRIVATE, *RANDOM, "run.dir=s", "run.id=one"]) == 130
    assert made == [0, 1]
    before = Path("s", "internal", "search.json").read_bytes()
    assert not Path("s", "result.json").exists()

    def counted(*arguments: Any) -> Any:
        made.append(arguments[3])
        return honest(*arguments)

    def never(*_: Any) -> int:
        raise AssertionError("drawn again")

    monkeypatch.setattr(tuning, "run_trial", counted)
    monkeypatch.setattr(sealed, "draw_trials", never)
    assert run(["train", *PRIVATE, *RANDOM, "run.dir=s"]) == 0
    assert made == [0, 1, 2, 3]
    assert Path("s", "internal", "search.json").read_bytes() == before
    assert read_json(Path("s", "result.json"))["run_id"] == "one"
    assert verified("s")
    ledger = open_ledger(None)
    (entry,) = ledger.state.entries.values()
    assert (entry.status, entry.charged_steps) == ("settled", 1)
    assert read_json(Path("s", "statement.json"))["composition"]["prior"] == 0
    ledger.close()
    assert "nothing is charged again" in capsys.readouterr().err
    assert run(["train", *PRIVATE, *RANDOM, "run.dir=s"]) == 3  # finished: a further winner would be a further search


@pytest.mark.parametrize("change", [["optimizer.lr=0.1,0.5,2"], ["privacy.noise_multiplier=2"], ["seed=1"]])
def test_draws_serve_only_the_search_they_were_made_for(change: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tuning, "run_trial", dies)
        patched.setattr(sealed, "draw_trials", lambda trials, stream: 2)
        assert run(["train", *PRIVATE, *RANDOM, "run.dir=s"]) == 130
    held = [a for a in PRIVATE + RANDOM if a.split("=")[0] != change[0].split("=")[0]]
    assert run(["train", *held, *change, "run.dir=s"]) == 3


def test_a_search_given_up_in_the_ledger_does_not_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tuning, "run_trial", dies)
        patched.setattr(sealed, "draw_trials", lambda trials, stream: 2)
        assert run(["train", *PRIVATE, *RANDOM, "run.dir=s", "run.id=one"]) == 130
    assert run(["budget", "close", "run=one", "reason=dead"]) == 0
    assert run(["train", *PRIVATE, *RANDOM, "run.dir=s"]) == 3
    ledger = open_ledger(None)
    assert ledger.account("people").value > 0  # what was committed stays charged
    ledger.close()


def test_a_poisson_law_may_select_nothing_and_is_charged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_trials(monkeypatch, 0)
    law = ["tuning.trials_distribution=poisson"]
    assert run(["train", *PRIVATE, *RANDOM, *law, "run.dir=s"]) == 0
    assert "nothing was selected" in capsys.readouterr().out
    assert read_json(Path("s", "result.json"))["status"] == "nothing_selected"
    assert not Path("s", "checkpoint").exists()
    ledger = open_ledger(None)
    (entry,) = ledger.state.entries.values()
    assert (entry.status, entry.charged_steps) == ("settled", 1)
    ledger.close()


def test_a_grid_is_charged_whole_and_may_be_seen(capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ["--multirun", "tuning.strategy=grid", "optimizer.lr=0.1,0.5", "privacy.noise_multiplier=3,4"]
    held = [a for a in PRIVATE if not a.startswith("privacy.noise_multiplier")]
    assert run(["train", *held, *sweep, "run.dir=g"]) == 0
    assert capsys.readouterr().err.count("accuracy") == 4
    assert len(read_json(Path("g", "trials.json"))["runs"]) == 4
    statement = read_json(Path("g", "statement.json"))
    assert statement["tuning"]["strategy"] == "grid"
    assert statement["guarantee"]["epsilon"] == statement["tuning"]["epsilon_after"]
    assert statement["tuning"]["epsilon_after"] > 1.5 * statement["tuning"]["epsilon_before"]
    assert verified("g")
    ledger = open_ledger(None)
    assert len(ledger.state.entries) == 1
    ledger.close()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            [*PRIVATE, *RANDOM, "privacy.clipping_norm=1,2"],
            "clipping_norm=1,2: would change what a trial costs",
        ),
        ([*PRIVATE, *RANDOM, "seed=1,2"], "seed=: also decides which rows"),
        ([*PRIVATE, *RANDOM, "data.public_size=200,201"], "data.public_size=: cannot be searched over"),
        ([*PRIVATE, *RANDOM, "task.metrics=[accuracy],[auroc]"], "task.metrics=: cannot be searched over"),
        ([*PRIVATE, *RANDOM, "hydra/launcher=joblib"], "hydra/launcher=JoblibLauncher: is not Hydra's own"),
        ([*PRIVATE, *RANDOM, "tuning.score=acuracy"], "did you mean 'accuracy'?"),
        ([*PRIVATE, *RANDOM[:3]], "--multirun=: sweeps over nothing"),
        ([*PRIVATE, *RANDOM, "optimizer.name=sgd,sdg"], "optimizer"),
        ([*PRIVATE, *RANDOM, "allow_nonprivate_metrics=[member_loss]"], "would show trials"),
        ([*PRIVATE, "--multirun", "optimizer.lr=0.1,1"], "tuning.strategy=null: data 'people' is private"),
        ([*PRIVATE, "--multirun", "optimizer.lr=0.1,1", "tuning.public=true"], "tuning.public=True: data 'people'"),
        ([*PRIVATE, "tuning.strategy=random", "tuning.mean_trials=3"], "searches, and this is a single run"),
        ([*PRIVATE, "--multirun", "tuning.strategy=random", "optimizer.lr=0.1,1"], "tuning.mean_trials=null"),
        ([*PRIVATE, *RANDOM, "tuning.stratgy=grid"], "did you mean 'tuning.strategy'?"),
    ],
)
def test_what_cannot_be_charged_is_refused_in_one_line_before_anything_is_spent(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", *arguments, "run.dir=s"]) == 2
    err = capsys.readouterr().err
    assert text in err.splitlines()[-1]
    assert not Path("s").exists()


def test_a_search_beyond_the_limit_is_refused_whole(capsys: pytest.CaptureFixture[str]) -> None:
    held = [a for a in PRIVATE if not a.startswith("ledger")]
    assert run(["train", *held, *RANDOM, "run.dir=s", "ledger.epsilon_limit=0.3"]) == 3
    assert not Path("s").exists()


def test_sweeps_over_public_data_are_free_and_say_so() -> None:
    arguments = ["train", "experiment=quickstart", "tracking=none", "privacy.epochs=1", "--multirun"]
    assert run([*arguments, "optimizer.lr=0.1,1", "tuning.public=true"]) == 0
    statements = [read_json(path) for path in Path("runs").glob("*/statement.json")]
    assert [s["tuning"]["public_only"] for s in statements] == [True, True]
