from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from dptrain.tracking.metrics_log import MetricsLog, read_metrics

RECORDS = st.lists(
    st.dictionaries(st.text(max_size=8), st.none() | st.integers(-1000, 1000) | st.floats(allow_nan=False), max_size=4),
    max_size=5,
)


def test_a_record_is_readable_before_the_file_is_closed(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1, "epsilon": 0.5})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "epsilon": 0.5}]
    log.close()
    log.close()


def test_values_json_does_not_have_become_null(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.append({"step": 1, "public_loss": float("nan"), "test_mae": float("inf"), "epsilon": None})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text) == {"step": 1, "public_loss": None, "test_mae": None, "epsilon": None}


@given(records=RECORDS, cut=st.integers(0, 40))
def test_a_torn_end_loses_at_most_what_was_torn(records: list[dict], cut: int, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    with MetricsLog(path) as log:
        for record in records:
            log.append(record)
    whole = read_metrics(path)
    assert len(whole) == len(records)
    data = path.read_bytes()[: max(0, path.stat().st_size - cut)]
    path.write_bytes(data)
    kept = read_metrics(path)
    assert kept == whole[: len(kept)]
    assert len(kept) >= data.count(b"\n")


def test_a_new_writer_does_not_lengthen_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "pub')
    with MetricsLog(path) as log:
        log.append({"step": 3})
    assert read_metrics(path) == [{"step": 1}, {"step": 3}]


def test_an_absent_file_holds_nothing(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "none.jsonl") == []
