"""data=text: the same rows from every kind of file; what is wrong is said in one line that quotes no text."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
import torch

from dptrain.config_data import DataConfig
from dptrain.config_text import TextConfig
from dptrain.data.source import Source, Splits
from dptrain.errors import ConfigError
from dptrain.registry import sources

ROWS = [{"note": f'line {i}\nand, "more" é', "ward": "ab"[i % 2], "who": i // 2} for i in range(10)]
NAMES = ("note", "ward", "who")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def source(path: str | Path, text: dict[str, Any] | None = None, **settings: Any) -> Source:
    given: dict[str, Any] = {"label": "ward", "classes": ["a", "b"], "public_fraction": 0.3, "public_size": 7}
    given |= {"text": TextConfig(**{"column": "note", "tokenizer": "bytes", "max_length": 40, **(text or {})})}
    given |= settings
    return sources.build("text", DataConfig(name="text", path=str(path), **given), 0)


def save_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def save_folder(path: Path, rows: list[dict[str, Any]]) -> Path:
    """As ``datasets`` saves one: two Arrow streams and a list of them."""
    path.mkdir()
    half = len(rows) // 2
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name, part in zip(names, (rows[:half], rows[half:]), strict=True):
        table = pyarrow.Table.from_pylist(part)
        with pyarrow.OSFile(str(path / name), "wb") as out, pyarrow.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    return path


def saved(kind: str, folder: Path, rows: list[dict[str, Any]]) -> Path:
    if kind == "jsonl":
        return save_lines(folder / "rows.jsonl", rows)
    if kind == "folder":
        return save_folder(folder / "rows", rows)
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    with path.open("w", newline="", encoding="utf-8") as out:
        writer: csv.DictWriter[str] = csv.DictWriter(out, list(NAMES), delimiter="\t" if kind == "tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet", "folder"])
def test_every_kind_of_file_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    made = source(saved(kind, tmp_path, ROWS), unit_column="who")
    info = made.info
    assert (info.task, info.input_shape, info.vocabulary, info.unit) == ("binary", (40,), 259, "user")
    splits = made.load()
    assert len(splits.train) + len(splits.public) == 10 and splits.train.num_units + splits.public.num_units == 5
    row = splits.train.inputs[0]
    text = bytes(i - 3 for i in row.tolist() if i > 2).decode()
    assert text in {row["note"] for row in ROWS}
    # "line N": an even N is class a.
    letters = splits.train.inputs[:, 1 + len("line ")] - 3 - ord("0")
    assert torch.equal(splits.train.targets, letters % 2)
    assert splits.found == {"text": {"rows": len(splits.train), "rows_cut_off": 0, "max_length": 40}}


def test_a_public_file_and_the_task_language(tmp_path: Path) -> None:
    private, public = save_lines(tmp_path / "a.jsonl", ROWS), save_lines(tmp_path / "b.ndjson", ROWS[:3])
    free = {"public_fraction": None, "public_path": str(public), "label": None, "classes": None, "task": "language"}
    made = source(private, {"max_length": 12}, **free)
    splits = made.load()
    assert made.info.task == "language" and made.info.num_outputs == 1
    assert len(splits.train) == 10 and len(splits.public) == 3 and splits.found is not None
    assert splits.found["text"]["rows_cut_off"] == 10 and splits.train.targets.tolist() == [11] * 10
    with pytest.raises(ConfigError, match=r"data\.public_path=.*shares values of who"):
        source(private, unit_column="who", public_fraction=None, public_path=str(public)).load()


SECRET = "SECRETCELL"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"note": None}, r"data\.text\.column=note: row 3 has no text"),
        ({"note": 7}, "row 3 holds int, no text"),
        ({"note": [SECRET]}, "row 3 holds list, no text"),
        ({"note": "\ud800" + SECRET}, "row 3 is no valid Unicode"),
        ({"ward": SECRET}, r"data\.label=ward: row 3 is none of data\.classes"),
        ({"ward": None}, r"row 3 is none of data\.classes"),
        ({"ward": {SECRET: 1}}, "row 3 holds dict, which is no name"),
        ({"who": None}, r"data\.unit_column=who: row 3 belongs to nobody"),
        ({"who": "  "}, "row 3 belongs to nobody"),
    ],
)
def test_bad_rows_are_refused_without_quoting_them(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    rows = [*ROWS[:2], {**ROWS[2], **change}, *ROWS[3:]]
    with pytest.raises(ConfigError, match=why) as refusal:
        source(save_lines(tmp_path / "rows.jsonl", rows), unit_column="who").load()
    assert SECRET not in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_column_that_no_line_has_is_named(tmp_path: Path) -> None:
    file = save_lines(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(ConfigError, match=r"data\.path=.*rows\.jsonl: has no column 'patient'"):
        source(file, unit_column="patient").load()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "has 0 rows"),
        (b"\n \n", "has 0 rows"),
        (b'{"note": "a", "ward": "a"}\n{"note": SECRETCELL\n', "line 2 is not JSON"),
        (b'{"note": "a", "ward": "a"}\n["SECRETCELL"]\n', "line 2 is no object"),
        (b'{"note": "a", "ward": "a"}\n\n{"note": "\xff"}\n', "line 3 is not UTF-8"),
        (b'{"note": ' + b"[" * 100_000 + b"}\n", "line 1 is not JSON"),
        (b'{"ward": "a"}\n' * 2, "has no column .note."),
    ],
)
def test_bad_lines_are_named(content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(ConfigError, match=why) as refusal:
        source(tmp_path / "rows.jsonl").load()
    assert "SECRETCELL" not in str(refusal.value)


def test_an_empty_cell_of_a_csv_is_a_missing_text_and_other_columns_are_named(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("note,ward\nhello,a\n,b\n")
    with pytest.raises(ConfigError, match="row 2 has no text"):
        source(tmp_path / "rows.csv").load()
    for kind in ("csv", "parquet", "folder"):
        (tmp_path / kind).mkdir()
        made = source(saved(kind, tmp_path / kind, ROWS), {"column": "memo"})
        with pytest.raises(ConfigError, match="has no column 'memo'"):
            made.load()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"public_size": None}, r"data\.public_size.*not set"),
        ({"text": {"column": None}}, r"data\.text\.column.*not set"),
        ({"text": {"tokenizer": None}}, r"data\.text\.tokenizer.*is needed"),
        ({"label": None}, r"data\.label.*not set"),
        ({"classes": ["a"]}, "has two classes|at least two"),
        ({"label": "note"}, r"is data\.text\.column too"),
        ({"unit_column": "ward"}, r"is data\.label too"),
        ({"task": "regression"}, "texts have classes"),
        ({"task": "language"}, "makes no use of it"),
        ({"public_fraction": None}, "exactly one of it"),
        ({"image_size": [1, 2, 2]}, "makes no use of it"),
        ({"unit_rows": [[1, 5]]}, "makes no use of it"),
        ({"unit_column": "who", "unit_rows": [[1, 5, 2]]}, r"is not \[rows, users\]"),
    ],
)
def test_declarations_are_checked_before_a_row_is_read(settings: dict[str, Any], why: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"no row of this is read")
    with pytest.raises(ConfigError, match=why):
        source(tmp_path / "rows.jsonl", settings.pop("text", None), **settings)


def test_files_that_say_not_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("x")
    with pytest.raises(ConfigError, match="does not tell by its ending"):
        source(tmp_path / "rows.txt")
    with pytest.raises(ConfigError, match="no such file"):
        source(tmp_path / "none.jsonl")
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(ConfigError, match="cannot be read as parquet"):
        source(tmp_path / "rows.parquet").load()


def test_folders_that_are_no_saved_data_set(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    both = tmp_path / "both"
    both.mkdir()
    (both / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    save_folder(both / "train", ROWS)
    outside = save_folder(tmp_path / "outside", ROWS)
    (outside / "state.json").write_text('{"_data_files": [{"filename": "../both/train/data-00000-of-00002.arrow"}]}')
    torn = save_folder(tmp_path / "torn", ROWS)
    (torn / "data-00001-of-00002.arrow").write_bytes(b"x" * 40)
    lacking = save_folder(tmp_path / "lacking", ROWS)
    (lacking / "data-00001-of-00002.arrow").unlink()
    cases = {"empty": "is no saved data set", "both": "holds several splits", "outside": "lists no files of the folder",
             "torn": "cannot be read as Arrow", "lacking": "lacks data-00001-of-00002"}  # fmt: skip
    for name, why in cases.items():
        with pytest.raises(ConfigError, match=why):
            source(tmp_path / name).load()


def test_a_row_says_nothing_about_others(tmp_path: Path) -> None:
    def load(rows: list[dict[str, Any]]) -> Splits:
        free = {"public_fraction": None, "public_path": str(save_lines(tmp_path / "public.jsonl", ROWS[:1]))}
        return source(save_lines(tmp_path / "rows.jsonl", rows), **free).load()

    whole, part = load(ROWS).train, load(ROWS[:9]).train
    assert torch.equal(whole.inputs[:9], part.inputs) and torch.equal(whole.targets[:9], part.targets)
