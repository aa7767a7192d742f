"""``dptrain plan advise=true``: a table, one row to paste, and nothing read or written."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dptrain.cli import recipe, run
from dptrain.compose import compose
from dptrain.data.source import Source
from dptrain.privacy.plan import compile_plan
from dptrain.registry import sources
from dptrain.training.advice import advise
from dptrain.training.advice_text import advice_text, clock
from dptrain.training.made_up import prepare_without_rows

QUICK = [
    "advise=true",
    "advice.seconds_per_row=0.001",
    "advice.rows=3",
    "advice.batches=[64,256]",
    "advice.steps=[40,160]",
]
SOON = ["privacy.epsilon=null", "privacy.noise_multiplier=2", "privacy.epochs=null", "privacy.steps=50"]
DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    config = compose("plan", [*QUICK, *SOON, "model=linear", "optimizer.warmup_steps=5"])
    return advise(prepare_without_rows(config, "has no noise"), config.advice)


def test_overrides_that_are_pasted_make_the_recommended_plan(found: dict[str, Any]) -> None:
    row = found["rows"][found["recommended"]]
    config = compose("train", ["model=linear", *found["overrides"]])
    plan = compile_plan(config.privacy, found["units"])
    assert plan.mechanism is not None and plan.epsilon is not None
    assert (plan.expected_batch_size, plan.steps) == (row["expected_batch_size"], row["steps"])
    assert plan.mechanism.noise_multiplier == pytest.approx(row["noise_multiplier"], rel=0.02)
    assert 0.98 * found["epsilon"] < plan.epsilon <= found["epsilon"] * (1 + 1e-6)
    assert config.execution.physical_batch_size == row["physical_batch_size"]
    assert config.optimizer.warmup_steps == round(5 * row["steps"] / 50)


def test_advice_is_plain_data_and_its_text_says_what_it_rests_on(found: dict[str, Any]) -> None:
    assert json.loads(json.dumps(found)) == found
    said = advice_text(found)
    assert said.count("\n  * ") == 2 and "recommended: batch" in said and "docs/plan.md" in said
    assert "no private row was read, no account was opened, nothing was spent" in said
    assert all(word in said for word in found["overrides"])


def test_costs_are_those_of_the_rows_that_go_through(found: dict[str, Any]) -> None:
    for row in found["rows"]:
        least = row["gradients"] * 0.001
        assert least < row["seconds"] < 1.6 * least, "padding and a draw above the mean, no more"


def test_nothing_is_read_charged_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Private rows, no purpose given, no account: advice is free all the same."""
    made = sources.build

    def locked(*arguments: Any, **more: Any) -> Source:
        source = made(*arguments, **more)

        def load() -> Any:
            raise AssertionError("a row was read")

        return Source(replace(source.info, is_public=False), load)

    monkeypatch.setattr(sources, "build", locked)
    assert run(["plan", *QUICK, *SOON, "model=linear", "advice.steps=[40]", "advice.rows=2"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_time_measured_here_on_made_up_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dptrain.training.advice.MEMORY_SECONDS", 0.0)
    words = [w for w in QUICK if "seconds_per_row" not in w]
    found = recipe("plan").run(compose("plan", [*words, *SOON, "model=linear", "execution.physical_batch_size=16"]))
    assert found["pace"]["seconds_per_row"] > 0 and found["pace"]["rows_that_fit"] >= 16
    assert "timed here on 16 made-up rows" in capsys.readouterr().out


def test_what_a_cap_keeps_is_told_from_public_counts(found: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    Path("people.csv").write_text("who,age,ill\n" + "a,30,0\nb,40,1\n" * 3)
    table = ["data=csv", "data.path=people.csv", "data.label=ill", "data.classes=['0','1']", "data.task=binary"]
    table += ["data.columns={age: {low: 0, high: 120}}", "data.public_size=1000", "data.public_fraction=0.2"]
    users = ["data.unit_column=who", "privacy.unit=user", "privacy.max_rows_per_unit=2"]
    counts = "data.unit_rows=[[1,900],[10,80],[40,20]]"
    assert run(["plan", *QUICK, *SOON, *table, *users, counts, "model=linear", "advice.steps=[40]"]) == 0
    assert re.search(r"\n +16 +81% +2% +2\.02 ", capsys.readouterr().out)
    assert "declare data.unit_rows" in advice_text({**found, "caps": []})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["advise=true", "advice.compute=soon"], "advice.compute=soon: is not a time"),
        (["advise=true", "advice.compute=0s"], "advice.compute=0s: is not a time"),
        (["advise=true", "advice.compute=1m", "advice.seconds_per_row=0"], "leave one of them out"),
        (["advise=true", "advice.compute=1s", "advice.seconds_per_row=9"], "pays for none of"),
        (["advise=true", "advice.batches=[0]"], "advice.batches=0.0:"),
        (["advise=true", "advice.batch=[8]"], "did you mean 'advice.batches'?"),
        (["advise=true", "privacy=off"], "has no noise to weigh up"),
        (["advice.compute=10m"], "set advise=true"),
    ],
)
def test_bad_input_is_one_line(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error, error
    assert list(tmp_path.iterdir()) == []


def test_train_takes_no_settings_of_advice(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "advise=true"]) == 2
    assert "advise" in capsys.readouterr().err


def test_help_teaches_advice(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--help"]) == 0
    said = capsys.readouterr().out
    for word in ("advise:", "compute:", "fewest_steps:", "max_rows_per_unit:", "physical_batch_size:"):
        assert word in said, word


def test_commands_of_the_page_are_taken_as_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    """Each is composed and checked; the first is run."""
    text = (DOCS / "plan.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.strip().splitlines()]
    assert len(lines) >= 3
    for line in lines:
        program, command, *words = shlex.split(line)
        assert (program, command) == ("dptrain", "plan")
        assert compose("plan", words).advise
    assert run([*shlex.split(lines[0])[1:], "advice.rows=2", "advice.seconds_per_row=0.0001"]) == 0
    assert "recommended: batch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.03, "0.03 s"), (61, "61 s"), (600, "10 min"), (7200, "2.0 h"), (200_000, "2 d")]
)
def test_times_are_told_shortly(seconds: float, said: str) -> None:
    assert clock(seconds) == said
