from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from dptrain.errors import ConfigError
from dptrain.report import facts
from dptrain.report.plots import figures
from dptrain.report.record import read_record
from dptrain.report.write import report_text, write_figures, write_report
from dptrain.run_folder import RunFolder, read_json, write_json, write_text

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\x1b[2J&amp;$\\frac"
VOID = {"meta", "img", "br"}
MakeRun = Callable[..., RunFolder]


class Page(HTMLParser):
    """Tags, attributes and visible text; notes tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page(folder: RunFolder, tier: str = "internal") -> Page:
    parsed = Page(write_report(folder, tier).read_text(encoding="utf-8"))
    assert parsed.open == []
    return parsed


def change(path: Path, **values: Any) -> None:
    write_json(path, read_json(path) | values)


def assert_self_contained(parsed: Page, source: str) -> None:
    assert not {tag for tag, _ in parsed.tags} & {"script", "link", "img", "iframe", "object", "base", "form"}
    for _, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "src", "xlink:href", "action", "srcset"):
            assert (attributes.get(name) or "#").startswith("#")
    assert "@import" not in source
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", source))


@pytest.mark.parametrize("tier", ["internal", "public"])
@pytest.mark.parametrize("private", [True, False])
def test_a_page_needs_nothing_from_outside(make_run: MakeRun, private: bool, tier: str) -> None:
    folder = make_run(private)
    parsed = page(folder, tier)
    path = folder.report if tier == "internal" else folder.public_report
    assert_self_contained(parsed, path.read_text(encoding="utf-8"))
    assert folder.report.exists() is (tier == "internal")


def test_the_headline_tells_accuracy_epsilon_and_attack(make_run: MakeRun) -> None:
    text = page(make_run()).text
    assert "92.6 % on public rows, at a privacy cost of ε = 2.998 per record (δ = 1e-5)" in text
    assert "0.531" in text and "not told apart from guessing" in text
    assert "No privacy promise" not in text


def test_a_run_without_privacy_is_loudly_so(make_run: MakeRun) -> None:
    folder = make_run(private=False)
    for tier in ("internal", "public"):
        text = page(folder, tier).text
        assert "No privacy promise" in text and "none promised" in text
        assert "NO PRIVACY PROMISE" in report_text(folder, tier)
    assert "better than guessing" in page(folder).text


@pytest.mark.parametrize("lost", ["statement", "its word", "the result's word"])
def test_a_promise_needs_a_statement_that_makes_it(make_run: MakeRun, lost: str) -> None:
    folder = make_run()
    if lost == "statement":
        folder.statement.unlink()
    elif lost == "its word":
        change(folder.statement, private=False)
    else:
        change(folder.result, private=None)
    assert "No privacy promise" in page(folder).text


def hostile_run(make_run: MakeRun) -> RunFolder:
    folder = make_run()
    change(folder.result, run_id=HOSTILE, data=HOSTILE, model=HOSTILE, status=HOSTILE, device=HOSTILE)
    statement = read_json(folder.statement)
    statement["dataset"] |= {"name": HOSTILE, "licence": HOSTILE, "public_split": HOSTILE}
    statement |= {
        "sentence": HOSTILE,
        "adjacency": {"relation": HOSTILE},
        "unit": {"kind": HOSTILE, "max_rows": HOSTILE},
    }
    held = {"claim": HOSTILE, "assumed": False, "implemented": HOSTILE, "verified_by": HOSTILE}
    statement["accounting"]["assumptions"].append(held)
    statement["limits"]["not_covered"].append(HOSTILE)
    statement["scope"]["nonprivate_metrics"] = [HOSTILE]
    write_json(folder.statement, statement)
    audit = read_json(folder.internal_audit)
    audit["verdict"] = audit["attacks"][0]["name"] = HOSTILE
    audit["attacks"][0]["tpr"][1]["refused"] = HOSTILE
    write_json(folder.internal_audit, audit)
    change(folder.plan, warnings=[HOSTILE], unit=HOSTILE)
    write_text(folder.config, json.dumps({"optimizer": {"name": HOSTILE, "options": {HOSTILE: HOSTILE}}}))
    metrics = read_json(folder.result)["metrics"] | {f"test_{HOSTILE}": 0.5}
    change(folder.result, metrics=metrics)
    return folder


@pytest.mark.parametrize("tier", ["internal", "public"])
def test_hostile_strings_stay_text(make_run: MakeRun, tier: str) -> None:
    folder = hostile_run(make_run)
    parsed = page(folder, tier)
    source = (folder.report if tier == "internal" else folder.public_report).read_text(encoding="utf-8")
    assert_self_contained(parsed, source)
    assert parsed.text.count("<script>alert(1)</script>") > 10
    text = report_text(folder, tier)
    assert "\x1b" not in text and "\x00" not in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("private", [True, False])
def test_the_public_tier_holds_nothing_of_the_internal_one(
    make_run: MakeRun, private: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(private)
    canary = "canary-7d1f"
    change(folder.internal_audit, verdict=canary)
    write_text(folder.internal_metrics, json.dumps({"step": 1, "member_loss": 0.123456, "note": canary}) + "\n")
    change(
        folder.result,
        tracking_uri=f"http://{canary}",
        seconds=98765.4,
        metrics={"test_accuracy": 0.9, "member_loss": 0.123456, "clipped_share": 0.654321, "audit/loss_auc": 0.777},
    )
    inside, read_text, read_bytes = [], Path.read_text, Path.read_bytes

    def spy(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Path, *args: Any, **kwargs: Any) -> Any:
            if folder.internal in self.parents:
                inside.append(self)
            return method(self, *args, **kwargs)

        return call

    monkeypatch.setattr(Path, "read_text", spy(read_text))
    monkeypatch.setattr(Path, "read_bytes", spy(read_bytes))
    shown = write_report(folder, "public").read_text(encoding="utf-8") + report_text(folder, "public")
    shown += "".join(p.read_text(encoding="utf-8") for p in write_figures(folder, "public", folder.path / "figures"))
    assert not inside
    for secret in (canary, "0.1235", "0.6543", "0.777", "27 h", "/secret", "tracking.internal", str(folder.path)):
        assert secret not in shown
    assert not re.search(r"attack", shown.split("</style>")[1], re.IGNORECASE)
    write_report(folder, "internal")
    assert inside and canary in folder.report.read_text(encoding="utf-8")


def test_a_published_private_metric_is_shown_and_named(make_run: MakeRun) -> None:
    folder = make_run()
    change(folder.statement, scope={"nonprivate_metrics": ["clipped_share"]})
    change(folder.result, metrics={"test_accuracy": 0.9, "clipped_share": 0.654321, "member_loss": 0.123456})
    text = page(folder, "public").text
    assert "Published outside the promise clipped_share" in text
    assert "0.6543" in text and "0.1235" not in text


def test_an_absent_audit_is_said(make_run: MakeRun) -> None:
    folder = make_run(audited=False)
    assert "Not audited yet" in page(folder).text
    assert "No audit yet" in report_text(folder, "internal")


def test_a_bare_folder_is_reported_as_far_as_it_goes(make_run: MakeRun) -> None:
    folder = make_run(audited=False)
    for path in (folder.plan, folder.statement, folder.metrics, folder.internal_metrics, folder.config):
        path.unlink()
    write_json(folder.result, {"run_id": "r1", "status": "failed"})
    for tier in ("internal", "public"):
        assert "No privacy promise" in page(folder, tier).text
        assert "failed" in report_text(folder, tier)


def test_numbers_that_are_none_do_not_break_a_page(make_run: MakeRun) -> None:
    folder = make_run()
    change(folder.result, metrics={"test_accuracy": None}, seconds=None, parameters=None)
    nothing = {"name": "loss", "auc": {"value": None, "low": None, "high": None}, "tpr": None, "roc": None}
    change(folder.internal_audit, attacks=[nothing], confidence=None, members=None)
    write_text(folder.metrics, '{"step": 1, "test_accuracy": NaN, "epsilon": null}\n')
    text = page(folder).text
    assert "nan" not in text.lower().split() and "not available" in text


def test_other_tasks_units_and_endings(make_run: MakeRun) -> None:
    folder = make_run()
    statement = read_json(folder.statement)
    statement["unit"] = {"kind": "user", "max_rows": 5}
    statement["adjacency"]["relation"] = "add_remove"
    statement["guarantee"] |= {"claim": "stopped_early", "epsilon_at": [], "epsilon": 1.23401}
    statement["sampling"]["steps_done"] = 400
    write_json(folder.statement, statement)
    change(folder.result, metrics={"test_mae": 3.25, "public_loss": 1.0}, status="stopped", steps=400)
    for text in (page(folder).text, " ".join(report_text(folder, "public").split())):
        assert "Mean absolute error 3.25" in text and "ε = 1.235 per user" in text
        assert "at most 5 rows" in text and "stopped early" in text and "400 of 1,170 planned" in text
        assert "add or remove one user" in text


def test_a_damaged_file_is_one_line(make_run: MakeRun) -> None:
    folder = make_run()
    write_text(folder.statement, '{"private": tr')
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        write_report(folder, "internal")
    assert not folder.report.exists()
    with pytest.raises(ConfigError, match="is not one of internal, public"):
        report_text(folder, "secret")


def test_figures_are_files_of_their_own(make_run: MakeRun) -> None:
    folder = make_run()
    paths = write_figures(folder, "internal", folder.path / "figures")
    assert sorted(path.name for path in paths) == ["errors.svg", "progress.svg", "roc.svg", "tradeoff.svg"]
    for path in paths:
        assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_a_search_says_what_the_choice_cost_and_draws_no_score_against_a_constant_epsilon(make_run: MakeRun) -> None:
    folder = make_run()
    statement = json.loads(folder.statement.read_text())
    law = {"strategy": "random", "trials_distribution": "geometric, mean 4", "public_only": False}
    statement["tuning"] = law | {"epsilon_before": 1.0, "epsilon_after": 2.0}
    folder.statement.write_text(json.dumps(statement))
    lines = [json.loads(line) | {"epsilon": 2.0} for line in folder.metrics.read_text().splitlines()]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = read_record(folder, "public")
    said = dict(facts.promise(record))["Choice of settings"]
    assert (
        said
        == "the best of a secret number of trials (geometric, mean 4): ε = 1 for one trial alone, 2 with the choice"
    )
    assert "tradeoff" not in figures(record) and "progress" in figures(record)
