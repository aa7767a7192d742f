"""Adult: fixed public features, the official split, and its two traps (comment line, labels with a point)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dptrain.config_data import DataConfig
from dptrain.data.adult import COLUMNS
from dptrain.data.columns import check_columns, width
from dptrain.data.source import Splits
from dptrain.errors import ConfigError
from dptrain.registry import sources

REAL = Path(__file__).resolve().parents[2] / "data" / "adult"
LINE = "{age}, Private, 77516, Bachelors, 13, Never-married, ?, Wife, White, Male, {gain}, 0, 40, Cuba, {label}\n"


def person(age: str = "39", gain: str = "0", label: str = "<=50K") -> str:
    return LINE.format(age=age, gain=gain, label=label)


def load(folder: Path, train: str, test: str = "|1x3 Cross validator\n" + person(label=">50K.")) -> Splits:
    (folder / "adult.data").write_text(train)
    (folder / "adult.test").write_text(test)
    config = DataConfig(name="adult", path=str(folder))
    return sources.build("adult", config, 0, options={"verify": False}).load()


def place(name: str) -> int:
    """Position of a column's first feature."""
    names = list(COLUMNS)
    return width({n: COLUMNS[n] for n in names[: names.index(name)]})


def test_the_traps_of_the_format(tmp_path: Path) -> None:
    splits = load(tmp_path, person() + person(label=">50K") + "\n")
    assert splits.train.targets.tolist() == [0, 1] and splits.public.targets.tolist() == [1]


def test_features_are_public_constants(tmp_path: Path) -> None:
    check_columns(COLUMNS)
    rows = load(
        tmp_path, person("17", "0") + person("90", "99999") + person("500", "1e38") + person("53.5", "-3")
    ).train
    assert rows.inputs.shape == (4, 110) and rows.inputs.abs().max() <= 1.0
    assert rows.inputs[:, place("age")].tolist() == [-1.0, 1.0, 1.0, 0.0]
    assert rows.inputs[:, place("age-squared")].tolist() == [1.0, 1.0, 1.0, -1.0]
    for name in ("capital-gain", "capital-gain-log"):
        assert rows.inputs[:, place(name)].tolist() == [-1.0, 1.0, 1.0, -1.0]
    unknown = place("occupation") + len(COLUMNS["occupation"].categories or []) - 1
    assert rows.inputs[0, unknown] == 1.0
    # 8 categorical columns, one 1 each; the row next to others is the row alone.
    assert int((rows.inputs[0] == 1.0).sum()) == 8 + 1
    assert torch.equal(load(tmp_path, person("17", "0")).train.inputs[0], rows.inputs[0])


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        (person() + person(label="SECRETCELL"), r"data\.label=row 2: is neither"),
        (person() + person(age="SECRETCELL"), r"data\.columns\.age=row 2: is not a number"),
        (person() + "SECRETCELL, 3\n", r"row 2 has 2 fields, not 15"),
        ("", "holds no row"),
        ("\xe9" * 40, "is not text"),
    ],
)
def test_bad_rows_are_refused_without_quoting_them(tmp_path: Path, train: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as refusal:
        load(tmp_path, train)
    assert "SECRETCELL" not in str(refusal.value)


def test_the_published_set_trains_as_published() -> None:
    if not REAL.is_dir():
        pytest.skip("data/adult is not here; bash scripts/fetch_data.sh adult")
    from sklearn.linear_model import LogisticRegression

    splits = sources.build("adult", DataConfig(name="adult", path=str(REAL)), 0).load()
    assert len(splits.train) == 32_561 and len(splits.public) == 16_281
    # adult.names: 24.08 % of the training rows and 23.62 % of the test rows earn over 50K.
    assert float(splits.train.targets.float().mean()) == pytest.approx(0.2408, abs=1e-4)
    model = LogisticRegression(max_iter=300, tol=1e-3).fit(splits.train.inputs.numpy(), splits.train.targets.numpy())
    # 85.5 % measured; NBTree's 85.90 % is the best figure in adult.names. Sampling error of the test set: 0.28.
    assert 0.850 < model.score(splits.public.inputs.numpy(), splits.public.targets.numpy()) < 0.862
