"""The audit's section says what references found, and nothing of it leaves the internal tier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dptrain.report.record import read_record
from dptrain.report.summary import six_lines
from dptrain.report.text import render_text
from dptrain.report.write import write_report
from dptrain.run_folder import RunFolder, read_json, write_json

MakeRun = Callable[..., RunFolder]
HOSTILE = "<script>alert(1)</script>"


def references(group: str = "sneaker") -> dict[str, Any]:
    return {
        "count": 16,
        "new": 4,
        "pool": {"units": 1797, "members": 1437, "trained_on": 898},
        "seeds": [{"seed": 7, "pair": 0, "side": "a"}],
        "between_models": {
            "rmia": [{"fpr": 0.01, "targets": 16, "tpr": 0.0442, "sd": 0.009, "low": 0.0398, "high": 0.0485}]
        },
        "exposed": {
            "attack": "rmia",
            "fpr": 0.01,
            "together": 12,
            "confidence": 0.95,
            "groups": [{"by": "class", "group": group, "members": 140, "found": 0.0643, "low": 0.0298, "high": 0.1185}],
            "suppressed": 2,
        },
        "way": "stacked by 16: 3.2 times as quick as one by one",
        "seconds": 61.5,
        "cpu_seconds": 60.1,
    }


def with_references(folder: RunFolder, found: Any) -> RunFolder:
    write_json(folder.internal_audit, read_json(folder.internal_audit) | {"references": found})
    return folder


def test_the_page_says_what_references_found(make_run: MakeRun) -> None:
    page = write_report(with_references(make_run(private=False), references()), "internal").read_text()
    for words in ("1,797 units", "4.4", "16 models", "sneaker", "6.4", "2 groups of fewer than 20", "band of"):
        assert words in page, words


def test_plain_text_says_what_references_found(make_run: MakeRun) -> None:
    folder = with_references(make_run(private=False), references())
    text = render_text(read_record(folder, "internal"))
    assert max(len(line) for line in text.splitlines()) <= 80
    whole = " ".join(text.split())
    for words in ("1,797 units", "rmia, 1 % FPR", "4.4 % [4.0 %,", "over 16 models", "class sneaker", "of 140"):
        assert words in whole, words
    assert "All 12 intervals hold together with 95 % confidence" in whole
    assert "reference models" not in render_text(read_record(folder, "public"))


def test_the_six_lines_name_references_and_what_is_found(make_run: MakeRun) -> None:
    folder = with_references(make_run(), references())
    line = dict(six_lines(folder, "internal"))["attack"]
    assert "16 references" in line and "of members at" in line
    assert "references" not in dict(six_lines(folder, "public"))["attack"]


def test_a_refused_rate_is_said(make_run: MakeRun) -> None:
    found = references() | {"exposed": {"fpr": 0.001, "refused": "needs at least 1000 non-members; 360 given"}}
    page = write_report(with_references(make_run(), found), "internal").read_text()
    assert "Not shown: needs at least 1000 non-members; 360 given." in page


def test_nothing_of_it_is_public(make_run: MakeRun) -> None:
    page = write_report(with_references(make_run(), references("canary-word")), "public").read_text()
    assert "canary-word" not in page
    assert "Reference models" not in page


@pytest.mark.parametrize("found", [None, [], "text", {"count": "x"}, {"between_models": 3, "exposed": [1]}])
def test_a_damaged_part_does_not_stop_the_page(make_run: MakeRun, found: Any) -> None:
    assert "What an attack found" in write_report(with_references(make_run(), found), "internal").read_text()


def test_names_from_the_run_are_escaped(make_run: MakeRun) -> None:
    page = write_report(with_references(make_run(), references(HOSTILE)), "internal").read_text()
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page


CHECKED = {
    "canaries": {"kind": "crafted", "count": 400},
    "sentence": "Not rejected: no violation larger than the claimed epsilon 3 found.",
    "level": 0.01,
    "test": {"p_value": 0.37, "assumption": "whatever depends on what"},
    "independent_test": {"p_value": 0.21, "assumption": "independent canaries"},
    "bounds": [
        {"name": "one_run", "epsilon": 0.71, "delta": 1e-5, "confidence": 0.95, "assumption": "fair coins"},
        {"name": "gaussian", "epsilon": 1.93, "delta": 1e-5, "confidence": 0.95, "assumption": HOSTILE},
    ],
}


def test_canaries_are_on_the_page_with_what_each_bound_assumes(make_run: MakeRun) -> None:
    folder = make_run()
    write_json(folder.internal_audit, read_json(folder.internal_audit) | {"claim_check": CHECKED, "epsilon_low": 0.25})
    page = write_report(folder, "internal").read_text()
    text = " ".join(render_text(read_record(folder, "internal")).split())
    for words in ("no violation larger than", "0.37", "0.21", "0.71", "1.93", "fair coins", "at least 0.25"):
        assert words in page and words in text, words
    assert HOSTILE not in page
    for wrong in (3, {"canaries": {"count": 1}, "bounds": [3], "test": 4}):
        write_json(folder.internal_audit, read_json(folder.internal_audit) | {"claim_check": wrong})
        assert "What an attack found" in write_report(folder, "internal").read_text()
    assert "fair coins" not in write_report(folder, "public").read_text()


def test_the_page_says_what_the_run_found_of_itself(make_run: MakeRun) -> None:
    folder = make_run()
    said = {"state": "passed", "steps": 1170, "looks": 12, "recomputed_steps": 20}
    said |= {"noise_ratio": "0.9991", "noise_interval": ["0.9966", "1.0016"]}
    for block, words in (
        (said, "0.9991 of the planned deviation [0.9966, 1.0016]"),
        ({"state": "off"}, "off: the run"),
    ):
        write_json(folder.statement, read_json(folder.statement) | {"selfcheck": block})
        assert words in write_report(folder, "internal").read_text()


def test_the_highest_of_several_aucs_is_read_by_the_interval_of_all(make_run: MakeRun) -> None:
    """One of seven intervals by itself lies above 0.5 by chance; picking it is no finding."""
    folder = make_run()
    audit = read_json(folder.internal_audit)
    auc = {"value": 0.536, "low": 0.502, "high": 0.570}
    both = [{"name": n, "auc": auc, "auc_together": {"low": 0.49, "high": 0.582}, "tpr": []} for n in ("loss", "rmia")]
    write_json(folder.internal_audit, audit | {"attacks": both})
    page = write_report(folder, "internal").read_text()
    assert "better than guessing (0.5)" not in page and "highest of 2 attacks" in page
    assert "AUC 0.536 (0.490 to 0.582)" in dict(six_lines(folder, "internal"))["attack"]
