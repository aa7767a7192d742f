"""What is refused before a row is read because it would promise something else than it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from dptrain.cli import run

TABLE = [
    "data=csv",
    "data.path=t.csv",
    "data.label=y",
    "data.classes=['0','1']",
    "data.task=binary",
    "data.columns={a: {low: 0, high: 1}}",
    "model=linear",
    "tracking=none",
    "privacy.expected_batch_size=20",
    "privacy.epochs=1",
    "run.purpose=final",
    "ledger.epsilon_limit=100",
]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    lines = ["a,y,who"] + [f"{i % 10 / 10},{i % 2},{i // 4}" for i in range(200)]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


REFUSED = [
    (["data.public_fraction=0.2"], "data.public_size"),
    (["data.public_fraction=0.2", "data.public_size=160", "privacy.adjacency=add_remove"], "data.public_path"),
    (["data.public_fraction=0.2", "data.public_size=160", "data.unit_column=who"], "privacy.unit=user"),
    (["data.public_fraction=0.2", "data.public_size=160", "privacy.unit=user"], "data.unit_column"),
    (
        [
            "data.public_fraction=0.2",
            "data.public_size=40",
            "data.unit_column=who",
            "privacy.unit=user",
            "privacy.max_rows_per_unit=500",
        ],
        "execution.physical_batch_size",
    ),
    (
        [
            "data.public_fraction=0.2",
            "data.public_size=40",
            "data.unit_column=who",
            "privacy.unit=user",
            "privacy.max_rows_per_unit=4",
            "clipping.engine=opacus_ghost",
        ],
        "clipping.engine=opacus_ghost: clips rows",
    ),
    (
        ["data.public_fraction=0.2", "data.public_size=40", "execution.checkpoint=[layers.*]"],
        "execution.checkpoint=layers.*: matches no module of this model",
    ),
    (
        [
            "data.public_fraction=0.2",
            "data.public_size=40",
            "execution.checkpoint=['*']",
            "clipping.engine=vmap",
        ],
        "execution.checkpoint=*: is not known to clipping.engine=vmap; set clipping.engine=bookkeeping",
    ),
    (["data.public_fraction=0.2", "data.public_size=150"], "data.public_size=160"),
    (["data.public_size=200"], "public"),
]


@pytest.mark.parametrize(("overrides", "word"), REFUSED, ids=[" ".join(r[0]) for r in REFUSED])
def test_promises_that_do_not_hold_are_refused(
    overrides: list[str], word: str, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", *TABLE, *overrides]) == 2
    said = capsys.readouterr().err
    assert word in said
    assert said.count("\n") == 1
    assert sorted(p.name for p in table.iterdir()) == ["t.csv"]


def test_users_are_trained_as_units(table: Path) -> None:
    """User-level from end to end: the statement speaks of users and a unit is a group of rows."""
    from dptrain.run_folder import read_json

    arguments = ["data.public_fraction=0.2", "data.unit_column=who", "privacy.unit=user", "privacy.max_rows_per_unit=3"]
    size = _users(table)
    assert run(["train", *TABLE, *arguments, f"data.public_size={size}", "run.dir=users"]) == 0
    statement = read_json(table / "users" / "statement.json")
    assert (statement["unit"]["kind"], statement["unit"]["max_rows"]) == ("user", 3)
    assert "each user" in statement["sentence"]
    assert run(["audit", "run=users"]) == 0
    audit = read_json(table / "users" / "internal" / "audit.json")
    assert audit["members"] == size


def _users(table: Path) -> int:
    """The number of training users of the content-blind split, as the refusal itself says it."""
    import contextlib
    import io
    import re

    said = io.StringIO()
    arguments = ["data.public_fraction=0.2", "data.unit_column=who", "privacy.unit=user", "privacy.max_rows_per_unit=3"]
    with contextlib.redirect_stderr(said):
        run(["train", *TABLE, *arguments, "data.public_size=7", "run.dir=none"])
    found = re.search(r"set data\.public_size=(\d+)", said.getvalue())
    assert found is not None, said.getvalue()
    return int(found.group(1))


@pytest.mark.parametrize("weights", ["[1,3]", "null"])
def test_a_regression_and_class_weights(table: Path, weights: str) -> None:
    from dptrain.run_folder import read_json

    names = "task.metrics=[accuracy,auroc,average_precision,f1,log_loss]"
    split = ["data.public_fraction=0.2", "data.public_size=160"]
    assert run(["train", *TABLE, *split, f"task.class_weights={weights}", names, "run.dir=binary"]) == 0
    metrics = read_json(table / "binary" / "result.json")["metrics"]
    assert set(metrics) == {
        "public_loss",
        "test_accuracy",
        "test_auroc",
        "test_average_precision",
        "test_f1",
        "test_log_loss",
    }
    regression = [a for a in TABLE if not a.startswith(("data.task", "data.classes"))]
    regression += ["data.task=regression", "data.target_low=0", "data.target_high=1", "data.public_fraction=0.2"]
    assert run(["train", *regression, "data.public_size=160", "run.dir=regression", "task.loss=huber"]) == 0
    assert set(read_json(table / "regression" / "result.json")["metrics"]) == {"public_loss", "test_mae", "test_rmse"}
    assert run(["audit", "run=regression"]) == 0
