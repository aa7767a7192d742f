"""A user's table: what is declared is what trains, and bad files are refused in one line that quotes no cell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dptrain.config_data import ColumnConfig, DataConfig
from dptrain.data.source import Source, Splits
from dptrain.errors import ConfigError
from dptrain.registry import sources

PEOPLE = "age,sex,ill,who\n30,f,yes,ann\n 60 ,m,no,bob\n90,x,no,cec\n0,f,yes,dan\n,,no,eve\n"
SECRET = "SECRETCELL"


def declared(path: Path, **given: object) -> DataConfig:
    columns = {"age": ColumnConfig(low=0, high=60), "sex": ColumnConfig(categories=["f", "m"])}
    base = DataConfig(
        name="parquet" if path.suffix == ".parquet" else "csv",
        path=str(path),
        label="ill",
        task="binary",
        classes=["no", "yes"],
        columns=columns,
        public_size=4,
        public_fraction=0.2,
    )
    return replace(base, **given)


def build(config: DataConfig, seed: int = 0) -> Source:
    return sources.build(config.name, config, seed)


def load(config: DataConfig, **options: object) -> Splits:
    return sources.build(config.name, config, 0, options=options).load()


def written(folder: Path, text: str | bytes, name: str = "people.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def whole(config: DataConfig, folder: Path) -> torch.Tensor:
    """Features of all rows of the private file, in file order."""
    header = "age,sex,ill\n1,f,no\n"
    if config.unit_column:
        header = f"age,sex,ill,{config.unit_column}\n1,f,no,somebody else\n"
    public = written(folder, header, "public.csv")
    return load(replace(config, public_fraction=None, public_path=str(public))).train.inputs


def test_features_follow_the_declaration_alone(tmp_path: Path) -> None:
    inputs = whole(declared(written(tmp_path, PEOPLE)), tmp_path)
    expected = [[0, 1, 0], [1, 0, 1], [1, 0, 0], [-1, 1, 0], [0, 0, 0]]
    assert torch.equal(inputs, torch.tensor(expected, dtype=torch.float32))


def test_a_row_does_not_depend_on_the_others(tmp_path: Path) -> None:
    alone = whole(declared(written(tmp_path, PEOPLE)), tmp_path)
    more = whole(declared(written(tmp_path, PEOPLE + "1e308,zz,no,eve\n-inf,f,no,eve\n")), tmp_path)
    assert torch.equal(more[:5], alone)


@pytest.mark.parametrize(("cell", "feature"), [("inf", 1.0), ("-inf", -1.0), ("1e38", 1.0), ("1e999", 1.0),
                                               ("NaN", 0.0), ("NA", 0.0), ("", 0.0)])  # fmt: skip
def test_extreme_and_missing_numbers_stay_in_range(tmp_path: Path, cell: str, feature: float) -> None:
    inputs = whole(declared(written(tmp_path, f"age,sex,ill\n{cell},f,no\n5,m,yes\n")), tmp_path)
    assert float(inputs[0, 0]) == feature


def test_building_reads_no_row(tmp_path: Path) -> None:
    path = written(tmp_path, b"\x00\xff not a table at all")
    source = build(declared(path))
    assert source.info.input_shape == (3,) and source.info.num_outputs == 1 and source.info.unit == "record"
    assert source.info.public_size == 4 and source.info.class_names == ("no", "yes")
    with pytest.raises(ConfigError, match=r"data\.path"):
        source.load()


def test_split_by_fraction_covers_every_row_once(tmp_path: Path) -> None:
    lines = "".join(f"{i},f,no\n" for i in range(50))
    config = declared(written(tmp_path, "age,sex,ill\n" + lines), columns={"age": ColumnConfig(low=0, high=50)})
    splits = load(config)
    ages = [((splits.train.inputs[:, 0] + 1) * 25), ((splits.public.inputs[:, 0] + 1) * 25)]
    assert len(splits.public) == 10
    assert sorted(torch.cat(ages).round().int().tolist()) == list(range(50))
    again, other = build(config).load(), build(config, seed=1).load()
    assert torch.equal(again.train.inputs, splits.train.inputs)
    assert not torch.equal(other.train.inputs, splits.train.inputs)


def test_a_person_is_on_one_side_only(tmp_path: Path) -> None:
    lines = "".join(f"{i % 40},f,no, p{i % 40} \n" for i in range(200))
    path = written(tmp_path, "age,sex,ill,who\n" + lines)
    config = declared(path, columns={"age": ColumnConfig(low=0, high=40)}, unit_column="who", public_fraction=0.3)
    assert build(config).info.unit == "user"
    splits = load(config)
    train, public = set(splits.train.inputs[:, 0].tolist()), set(splits.public.inputs[:, 0].tolist())
    assert train and public and not train & public and len(train | public) == 40
    assert splits.train.num_units == len(train) and len(splits.train) == 5 * len(train)


def test_ids_keep_their_exact_text(tmp_path: Path) -> None:
    path = written(tmp_path, "age,ill,who\n1,no,1\n2,no,01\n3,no,1.0\n4,yes,9007199254740993\n5,no,9007199254740992\n")
    config = declared(path, columns={"age": ColumnConfig(low=0, high=9)}, unit_column="who")
    public = written(tmp_path, "age,ill,who\n1,no,z\n", "public.csv")
    assert load(replace(config, public_fraction=None, public_path=str(public))).train.num_units == 5


def test_regression_targets_are_clamped(tmp_path: Path) -> None:
    path = written(tmp_path, "age,ill\n1,5\n2,-7\n3,inf\n4,2.5\n")
    public = written(tmp_path, "age,ill\n1,1\n", "public.csv")
    config = declared(
        path, task="regression", classes=None, target_low=0.0, target_high=10.0, public_fraction=None,
        public_path=str(public), columns={"age": ColumnConfig(low=0, high=9)},
    )  # fmt: skip
    source = build(config)
    assert source.info.num_classes == 1 and source.info.num_outputs == 1
    targets = source.load().train.targets
    assert targets.dtype == torch.float32 and targets.tolist() == [5.0, 0.0, 10.0, 2.5]
    written(tmp_path, "age,ill\n1,5\n2,\n")
    with pytest.raises(ConfigError, match=r"data\.label=ill: row 2 is missing"):
        load(config)


def test_other_separators_and_compression(tmp_path: Path) -> None:
    frame = pd.DataFrame({"age": [1, 2, 3], "sex": ["f", "m", "f"], "ill": ["no", "yes", "no"]})
    frame.to_csv(tmp_path / "people.csv.gz", sep=";", index=False)
    splits = load(declared(tmp_path / "people.csv.gz", public_fraction=0.34), separator=";")
    assert len(splits.train) + len(splits.public) == 3
    with pytest.raises(ConfigError, match=r"data\.options\.separator"):
        load(declared(tmp_path / "people.csv.gz"), separator=";;")


def parquet_frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "age": [30.0, np.inf, np.nan, 0.0],
            "sex": pd.Categorical(["f", None, "m", "f"]),
            "ill": pd.array([1, 0, 0, 1], dtype="Int64"),
            "who": pd.array([2**53 + 1, 2**53, 7, 8], dtype="Int64"),
        }
    )


def test_parquet_keeps_types_exact(tmp_path: Path) -> None:
    path = tmp_path / "people.parquet"
    parquet_frame().to_parquet(path)
    public = tmp_path / "public.parquet"
    parquet_frame().assign(who=[11.0, np.float64(12), 13, 14]).to_parquet(public)
    config = declared(
        path, classes=["0", "1"], unit_column="who", public_fraction=None, public_path=str(public), public_size=4
    )
    splits = load(config)
    assert splits.train.inputs.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1], [-1, 1, 0]]
    assert splits.train.targets.tolist() == [1, 0, 0, 1] and splits.train.num_units == 4


def test_a_parquet_column_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "people.parquet"
    parquet_frame().assign(age=pd.Timestamp("2020-01-01")).to_parquet(path)
    with pytest.raises(ConfigError, match=r"column 'age' is of type timestamp"):
        load(declared(path, classes=["0", "1"]))


BAD_TABLES = {
    "column dropped": (f"sex,ill\nf,{SECRET}\nm,no\n", r"data\.path=.*has no column 'age'"),
    "column retyped": (f"age,sex,ill\n1,f,no\n2,m,no\n{SECRET},f,no\n", r"data\.columns\.age=row 3: is not a number"),
    "label outside classes": (f"age,sex,ill\n1,f,no\n2,m,{SECRET}\n", r"data\.label=ill: row 2 is none of data"),
    "label missing": ("age,sex,ill\n1,f,no\n2,m,\n", r"data\.label=ill: row 2 is none of data"),
    "duplicate column": (f"age,sex,ill,age\n1,f,no,{SECRET}\n2,m,no,3\n", r"columns 1 and 4 have the same name"),
    "duplicate other column": ("age,sex,ill,x, x\n1,f,no,2,3\n", r"columns 4 and 5 have the same name"),
    "too many fields": (f"age,sex,ill\n1,f,no\n2,m,no,{SECRET}\n", r"line 3 has too many fields"),
    "too many fields everywhere": (f"age,sex,ill\n1,f,no,{SECRET}\n2,m,no,4\n", r"line 2 has too many fields"),
    "open quote": (f'age,sex,ill\n1,f,no\n2,"{SECRET},no\n', r"data\.path"),
    "no header": (f"1,f,{SECRET}\n2,m,no\n3,m,no\n", r"has no column"),
    "empty": ("", r"is empty"),
    "blank lines": ("\n\n", r"data\.path"),
    "header only": ("age,sex,ill\n", r"has 0 rows"),
    "one row": ("age,sex,ill\n1,f,no\n", r"has 1 rows"),
    "binary junk": (bytes(range(256)) * 20, r"data\.path"),
    "zeros": (b"\0" * 4096, r"data\.path"),
    "utf-16": (PEOPLE.encode("utf-16"), r"data\.path"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables_are_refused_in_one_line_that_quotes_no_cell(tmp_path: Path, name: str) -> None:
    content, problem = BAD_TABLES[name]
    with pytest.raises(ConfigError, match=problem) as refusal:
        load(declared(written(tmp_path, content)))
    assert SECRET not in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\xff" * 500 + b"PAR1", PEOPLE.encode()])
def test_junk_instead_of_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read as parquet"):
        load(declared(written(tmp_path, content, "people.parquet")))


def test_a_row_that_belongs_to_nobody_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "age,sex,ill,who\n1,f,no,ann\n2,m,no,  \n3,m,no,bob\n")
    with pytest.raises(ConfigError, match=r"data\.unit_column=who: row 2 belongs to nobody"):
        load(declared(path, unit_column="who"))


def test_a_person_in_both_files_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, PEOPLE)
    public = written(tmp_path, "age,sex,ill,who\n1,f,no,bob\n", "public.csv")
    with pytest.raises(ConfigError, match=r"data\.public_path=.*shares values of who"):
        load(declared(path, unit_column="who", public_fraction=None, public_path=str(public)))


BAD_SETTINGS: dict[str, tuple[dict[str, object], str]] = {
    "no path": ({"path": None}, r"data\.path"),
    "no file": ({"path": "nowhere.csv"}, r"data\.path=nowhere.csv: there is no such file"),
    "no label": ({"label": None}, r"data\.label"),
    "no task": ({"task": None}, r"data\.task"),
    "no classes": ({"classes": None}, r"data\.classes"),
    "three classes": ({"classes": ["a", "b", "c"]}, r"data\.classes"),
    "class twice": ({"classes": ["no", "no "]}, r"data\.classes=no: is listed twice"),
    "no columns": ({"columns": {}}, r"data\.columns"),
    "no size": ({"public_size": None}, r"data\.public_size"),
    "no public rows": ({"public_fraction": None}, r"data\.public_path"),
    "label as feature": ({"columns": {"ill": ColumnConfig(low=0, high=1)}}, r"data\.label"),
    "id as feature": ({"unit_column": "age"}, r"data\.unit_column"),
    "id as label": ({"unit_column": "ill"}, r"data\.unit_column"),
    "no bounds": ({"columns": {"age": ColumnConfig(low=0)}}, r"data\.columns\.age"),
    "bounds swapped": ({"columns": {"age": ColumnConfig(low=2, high=1)}}, r"data\.columns\.age"),
    "bounds infinite": ({"columns": {"age": ColumnConfig(low=0, high=float("inf"))}}, r"data\.columns\.age"),
    "bounds and categories": ({"columns": {"age": ColumnConfig(low=0, high=1, categories=["a"])}}, r"not both"),
    "category twice": ({"columns": {"sex": ColumnConfig(categories=["f", "f"])}}, r"categories=f: is listed twice"),
    "bounds for classes": ({"target_low": 0.0}, r"data\.target_low=0.0: data 'csv' makes no use of it"),
    "pictures": ({"image_size": [1, 2, 2]}, r"data\.image_size"),
    "regression unbounded": ({"task": "regression", "classes": None}, r"data\.target_low"),
    "regression with classes": ({"task": "regression"}, r"data\.classes"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_bad_declarations_are_refused_before_anything_is_read(tmp_path: Path, name: str) -> None:
    given, problem = BAD_SETTINGS[name]
    with pytest.raises(ConfigError, match=problem):
        build(replace(declared(written(tmp_path, PEOPLE)), **given))


def test_private_rows_cannot_be_declared_public(tmp_path: Path) -> None:
    path = written(tmp_path, PEOPLE)
    (tmp_path / "other.csv").symlink_to(path)
    for public in (path, tmp_path / "other.csv"):
        with pytest.raises(ConfigError, match=r"data\.public_path=.*is data\.path itself"):
            build(declared(path, public_fraction=None, public_path=str(public)))
