from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dptrain.errors import ConfigError
from dptrain.report.brief import brief
from dptrain.report.compare import comparison, epsilon_at_shared, front
from dptrain.report.compare_page import render_comparison_page
from dptrain.report.compare_text import render_comparison
from dptrain.report.pareto import pareto_svg
from dptrain.report.record import read_record
from dptrain.report.write import read_comparison, write_comparison
from dptrain.run_folder import RunFolder, read_json, write_json

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\x1b[2J&amp;$\\frac"
MakeRun = Callable[..., RunFolder]


def altered(folder: RunFolder, accuracy: float | None = None, **changes: Any) -> RunFolder:
    """A run folder with another score and other values in its statement (``block__name``)."""
    result, statement = read_json(folder.result), read_json(folder.statement)
    if accuracy is not None:
        result["metrics"]["test_accuracy"] = accuracy
    for path, value in changes.items():
        block, _, name = path.partition("__")
        if block == "result":
            result[name] = value
        elif name:
            statement.setdefault(block, {})[name] = value
        else:
            statement[block] = value
    write_json(folder.result, result)
    write_json(folder.statement, statement)
    return folder


def compared(*folders: RunFolder, tier: str = "internal") -> dict[str, Any]:
    return comparison([brief(read_record(folder, tier), folder.path) for folder in folders], tier)


def at(make_run: MakeRun, name: str, epsilon: float, accuracy: float, **changes: Any) -> RunFolder:
    pairs = [{"delta": 1e-5, "epsilon": epsilon}]
    promised = {"guarantee__epsilon": epsilon, "guarantee__epsilon_at": pairs} | changes
    return altered(make_run(name=name, audited=False), accuracy, **promised)


# --- which run beats which

pairs_of_runs = st.lists(st.tuples(st.sampled_from([0.5, 1.0, 2.0, 8.0]), st.sampled_from([0.1, 0.5, 0.9])), min_size=1)


@given(pairs_of_runs, st.sampled_from(["higher", "lower"]))
def test_the_front_holds_exactly_what_nothing_beats(points: list[tuple[float, float]], better: str) -> None:
    sign = 1 if better == "higher" else -1
    chosen = front(points, better)
    assert any(chosen)
    for (x, y), best in zip(points, chosen, strict=True):
        beaten = any(e <= x and sign * v >= sign * y and (e < x or sign * v > sign * y) for e, v in points)
        assert best is not beaten
    stairs = sorted({point for point, best in zip(points, chosen, strict=True) if best})
    assert all(sign * one[1] < sign * other[1] for one, other in pairwise(stairs))


@pytest.mark.parametrize("metric", ["test_mae", "test_rmse", "test_log_loss"])
def test_an_error_is_better_when_it_is_smaller(make_run: MakeRun, metric: str) -> None:
    folders = [at(make_run, "a", 1.0, 0.5), at(make_run, "b", 2.0, 0.5)]
    for folder, value in zip(folders, (3.0, 4.0), strict=True):
        altered(folder, result__metrics={metric: value})
    [panel] = compared(*folders)["panels"]
    assert (panel["metric"], panel["better"]) == (metric, "lower")
    assert [p["on_front"] for p in panel["points"]] == [True, False]


# --- one axis, one delta


@given(
    st.lists(st.tuples(st.sampled_from([1e-8, 1e-6, 1e-5, 1e-4]), st.floats(0, 10)), min_size=1),
    st.sampled_from([1e-7, 1e-6, 1e-5]),
)
def test_epsilon_at_another_delta_follows_from_what_is_stated(pairs: list[tuple[float, float]], delta: float) -> None:
    run = {"epsilon": None, "delta": None, "epsilon_at": [{"delta": d, "epsilon": e} for d, e in pairs]}
    found = epsilon_at_shared(run, delta)
    implied = [epsilon for at, epsilon in pairs if at <= delta]
    if not implied:
        assert found is None
    else:
        assert found is not None and found[0] == min(implied)


def test_runs_of_other_deltas_are_read_at_the_shared_one_and_named(make_run: MakeRun) -> None:
    same = [at(make_run, name, epsilon, 0.9) for name, epsilon in (("a", 1.0), ("b", 2.0))]
    stricter = at(make_run, "c", 3.0, 0.9, guarantee__delta=1e-7, guarantee__epsilon_at=[])
    looser = at(make_run, "d", 4.0, 0.9, guarantee__delta=1e-3, guarantee__epsilon_at=[])
    shown = compared(*same, stricter, looser)
    [panel] = shown["panels"]
    assert panel["delta"] == 1e-5
    by_id = {p["run_id"]: p for p in panel["points"]}
    assert by_id["c"]["epsilon"] == 3.0 and by_id["c"]["exact"] is False
    assert [e["run_id"] for e in panel["not_drawn"]] == ["d"]
    notes = " ".join(shown["notes"])
    assert "delta 1e-05" in notes and "run 3 (at most)" in notes and "Run 4 is not drawn" in notes
    text = render_comparison(shown)
    assert "at most 3" in text and "4 (δ = 0.001)" in text


@pytest.mark.parametrize(
    "other",
    [
        {"unit__kind": "user"},
        {"unit__max_rows": 5},
        {"adjacency": {"relation": "add_remove"}},
        {"dataset__public_size": 99},
        {"result__data": "mnist"},
        {"result__metrics": {"test_mae": 0.5}},
    ],
)
def test_runs_that_differ_in_kind_get_axes_of_their_own(make_run: MakeRun, other: dict[str, Any]) -> None:
    shown = compared(at(make_run, "a", 1.0, 0.8), at(make_run, "b", 2.0, 0.9, **other))
    assert len(shown["panels"]) == 2
    assert "axes of its own" in " ".join(shown["notes"])
    assert "2 kinds of runs" in render_comparison_page(shown)
    assert all(len(panel["points"]) == 1 for panel in shown["panels"])


def test_a_baseline_is_a_line_and_never_a_point(make_run: MakeRun) -> None:
    shown = compared(at(make_run, "a", 1.0, 0.8), altered(make_run(private=False, name="plain"), 0.97))
    [panel] = shown["panels"]
    assert [p["run_id"] for p in panel["points"]] == ["a"]
    assert [b["run_id"] for b in panel["baselines"]] == ["plain"]
    svg = pareto_svg(panel)
    assert svg and "without privacy: 97.0" in svg
    assert "no promise" in render_comparison(shown)


def test_without_a_promise_there_is_nothing_to_draw(make_run: MakeRun) -> None:
    shown = compared(make_run(private=False, name="a"), make_run(private=False, name="b"))
    assert shown["panels"] == []
    page, text = render_comparison_page(shown), render_comparison(shown)
    assert "<svg" not in page and "None of them has both" in page
    assert "no promise" in page and "no promise" in text


# --- what is shown


def test_table_page_and_json_show_the_same_numbers(make_run: MakeRun) -> None:
    spend = {
        "ledger_id": "f" * 32,
        "entry": 7,
        "account": "digits",
        "total": 4.5,
        "limit_epsilon": 8.0,
        "remaining": 3.5,
    }
    folders = [
        at(make_run, "a", 1.2344, 0.8125, composition=spend),
        at(make_run, "b", 2.5, 0.9, result__ratio_to_plain=2.625),
    ]
    shown = json.loads(json.dumps(compared(*folders), allow_nan=False))
    page, text = render_comparison_page(shown), render_comparison(shown)
    for said in ("1.235", "81.2", "4.500 of 8", "2.62 x", "31.4 s", "90.0", "1,170"):
        assert said in page and said in text, said
    assert shown["runs"][0]["epsilon"] == 1.2344 and shown["runs"][0]["spend"]["total"] == 4.5
    assert "Counted in no account: run 2." in text


def test_the_public_tier_knows_neither_time_nor_attack_nor_place(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run(name="a")
    inside, outside = compared(folder), compared(folder, tier="public")
    assert inside["runs"][0]["attack"]["auc"]["value"] and inside["runs"][0]["cost"]["seconds"] == 31.4
    told = json.dumps(outside) + render_comparison_page(outside).split("</style>")[1] + render_comparison(outside)
    assert outside["runs"][0]["attack"] is None and outside["runs"][0]["cost"]["seconds"] is None
    for secret in ("31.4", "0.53", "AUC", str(tmp_path)):
        assert secret not in told
    assert "AUC (internal)" in render_comparison(inside)


def test_metrics_from_private_rows_are_named(make_run: MakeRun) -> None:
    folder = at(make_run, "a", 1.0, 0.8, scope={"nonprivate_metrics": ["member_loss"]})
    altered(folder, result__metrics={"test_accuracy": 0.8, "member_loss": 0.25})
    for tier in ("internal", "public"):
        shown = compared(folder, tier=tier)
        assert "Computed from private rows and published outside any promise: member_loss." in shown["notes"]


def test_hostile_names_stay_text(make_run: MakeRun) -> None:
    folder = at(make_run, "a", 1.0, 0.8, unit__kind=HOSTILE, adjacency=HOSTILE, sentence=HOSTILE)
    altered(folder, result__run_id=HOSTILE, result__data=HOSTILE, result__model=HOSTILE, result__device=HOSTILE)
    altered(folder, result__status=HOSTILE, result__metrics={f"test_{HOSTILE}": 0.5})
    shown = compared(folder, at(make_run, "b", 2.0, 0.9))
    page, text = render_comparison_page(shown), render_comparison(shown)
    assert "<script" not in page and "<img" not in page and "\x1b" not in text
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(svg)


def test_two_hundred_runs_are_drawn_and_listed(make_run: MakeRun) -> None:
    folder = make_run(name="a", audited=False)
    one = brief(read_record(folder, "internal"), folder.path)
    many = []
    for k in range(200):
        score = {"name": "test_accuracy", "value": 0.5 + 0.4 * (k % 7) / 7 + k / 2000, "better": "higher"}
        many.append(
            one | {"run_id": f"run-{k:03d}-{'x' * 60}", "epsilon": 0.05 * (k + 1), "metric": score, "epsilon_at": []}
        )
    shown = comparison(many, "internal")
    [panel] = shown["panels"]
    assert len(panel["points"]) == 200
    svg = pareto_svg(panel)
    assert svg
    ElementTree.fromstring(svg)
    text = render_comparison(shown)
    assert max(len(line) for line in text.splitlines()) < 140
    assert render_comparison_page(shown).count("run-199-") == 1


@pytest.mark.parametrize("epsilon", [0.0, 1e-9, 5000.0])
def test_odd_epsilons_can_be_drawn(make_run: MakeRun, epsilon: float) -> None:
    shown = compared(at(make_run, "a", epsilon, 0.8), at(make_run, "b", 1.0, 0.8))
    svg = pareto_svg(shown["panels"][0])
    assert svg
    ElementTree.fromstring(svg)


def test_pages_and_figures_are_files(make_run: MakeRun, tmp_path: Path) -> None:
    shown = compared(at(make_run, "a", 1.0, 0.8), at(make_run, "b", 2.0, 0.9, unit__kind="user"))
    paths = write_comparison(shown, str(tmp_path / "deep" / "out"))
    assert [p.name for p in paths] == ["compare.html", "pareto.svg", "pareto.png", "pareto2.svg", "pareto2.png"]
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    page = paths[0].read_text(encoding="utf-8")
    assert "default-src 'none'" in page and "://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))
    assert pareto_svg(shown["panels"][0]) == paths[1].read_text(encoding="utf-8").rstrip("\n"), "the same each time"
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="into="):
        write_comparison(shown, str(tmp_path / "file" / "x"))


# --- which folders


def test_a_folder_and_a_glob_leave_out_what_is_no_finished_run(make_run: MakeRun, tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        make_run(name=name, audited=False)
    altered(RunFolder(tmp_path / "c", "c"), result__status="failed")
    (tmp_path / "d" / "result.json").unlink()
    (tmp_path / "notes").mkdir()
    for wanted in (str(tmp_path), f"{tmp_path}/*", f"{tmp_path}/[a-d]"):
        shown = read_comparison([wanted], "internal")
        assert [run["run_id"] for run in shown["runs"]] == ["a", "b"]
        why = {Path(entry["folder"]).name: entry["why"] for entry in shown["left_out"]}
        assert set(why) == {"c", "d"} and "error" in why["c"] and "still running" in why["d"]
        assert "Left out" in render_comparison(shown)


def test_a_folder_whose_name_looks_like_a_glob_is_itself(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run(name="a", audited=False)
    odd = tmp_path / "odd[1]"
    folder.path.rename(odd)
    assert len(read_comparison([str(odd)], "internal")["runs"]) == 1


def test_runs_that_cannot_be_compared_are_one_line(make_run: MakeRun, tmp_path: Path) -> None:
    a = make_run(name="a", audited=False).path
    failed = altered(make_run(name="f", audited=False), result__status="failed").path
    running = make_run(name="r", audited=False)
    running.result.unlink()
    broken = make_run(name="x", audited=False)
    broken.result.write_bytes(b"\x80torn")
    listed = make_run(name="l", audited=False)
    listed.result.write_text("[1]")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "result.json").write_bytes((a / "result.json").read_bytes())
    (tmp_path / "none").mkdir()
    cases = [
        ([tmp_path / "nowhere"], "no such folder"),
        ([a, a], "named twice"),
        ([a, tmp_path / "." / "a"], "named twice"),
        ([a, tmp_path / "copy"], "is a copy of"),
        ([failed], "ended with an error"),
        ([running.path], "not finished"),
        ([broken.path], "cannot be read"),
        ([listed.path], "damaged"),
        ([tmp_path / "none"], "holds no finished run"),
        ([tmp_path / "z*"], "matches no run folder"),
    ]
    for wanted, said in cases:
        with pytest.raises(ConfigError, match=r"^runs=") as refused:
            read_comparison([str(path) for path in wanted], "internal")
        assert said in str(refused.value) and "\n" not in str(refused.value)
