from __future__ import annotations

import math
import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from dptrain.report.plots import allowed_region, figures
from dptrain.report.record import read_record
from dptrain.run_folder import RunFolder, read_json, write_json, write_text


@pytest.mark.parametrize("private", [True, False])
def test_every_figure_is_valid_xml_that_refers_to_nothing_outside(make_run: Callable[..., RunFolder], private: bool):
    drawn = figures(read_record(make_run(private), "internal"))
    assert set(drawn) == ({"progress", "tradeoff", "errors", "roc"} if private else {"progress", "roc"})
    seen: set[str] = set()
    for svg in drawn.values():
        root = ElementTree.fromstring(svg)
        assert root.tag.endswith("svg") and root.get("viewBox") and root.get("aria-label")
        assert root.get("width") is None and root.get("height") is None  # the page scales it
        links = [value for node in root.iter() for key, value in node.attrib.items() if key.endswith("href")]
        assert all(link.startswith("#") for link in links)
        assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", svg))
        ids = {node.get("id") for node in root.iter() if node.get("id")}
        assert {link[1:] for link in links} <= ids
        assert not seen & ids
        seen |= {str(name) for name in ids}
        assert "<text" in svg


def test_the_same_run_gives_the_same_bytes(make_run: Callable[..., RunFolder]) -> None:
    folder = make_run()
    assert figures(read_record(folder, "internal")) == figures(read_record(folder, "internal"))


def test_the_public_tier_draws_no_attack(make_run: Callable[..., RunFolder]) -> None:
    assert set(figures(read_record(make_run(), "public"))) == {"progress", "tradeoff", "errors"}


@pytest.mark.parametrize("name", ["$\\frac{", "<b>&amp;", "_hidden", "\x00\x1b[2J", "\ud800", "", "长" * 99])
def test_odd_attack_names_are_drawn_as_text(make_run: Callable[..., RunFolder], name: str) -> None:
    folder = make_run()
    audit = read_json(folder.internal_audit)
    audit["attacks"][0]["name"] = name
    write_json(folder.internal_audit, audit)
    root = ElementTree.fromstring(figures(read_record(folder, "internal"))["roc"])
    assert not [node for node in root.iter() if node.tag.endswith("}b")]


@pytest.mark.parametrize(
    "roc", [None, {}, {"fpr": [], "tpr": []}, {"fpr": [0.0], "tpr": [0.0]}, {"fpr": [None, "x"], "tpr": [1, 2]}]
)
def test_an_attack_without_a_curve_is_left_out(make_run: Callable[..., RunFolder], roc: object) -> None:
    folder = make_run()
    audit = read_json(folder.internal_audit)
    for attack in audit["attacks"]:
        attack["roc"] = roc
    write_json(folder.internal_audit, audit)
    assert "roc" not in figures(read_record(folder, "internal"))


def test_a_run_without_metrics_has_no_progress(make_run: Callable[..., RunFolder]) -> None:
    folder = make_run()
    write_text(folder.metrics, '{"step": 5, "test_accuracy": null, "public_loss": null, "epsilon": 1.0}\n{"torn')
    assert set(figures(read_record(folder, "internal"))) == {"errors", "roc"}


@given(st.floats(0, 1e4), st.floats(0, 1), st.floats(0, 1))
def test_guessing_is_always_allowed_and_more_privacy_allows_less(epsilon: float, delta: float, fpr: float) -> None:
    [low], [high] = allowed_region(epsilon, delta, [fpr])
    assert 0 <= low <= fpr + 1e-12 and fpr - 1e-12 <= high <= 1
    [wider_low], [wider_high] = allowed_region(epsilon + 1, delta, [fpr])
    assert wider_low <= low + 1e-12 and wider_high >= high - 1e-12


@given(st.floats(0.1, 5), st.floats(0.01, 6))
def test_the_region_touches_the_gaussian_mechanism(mu: float, epsilon: float) -> None:
    """Its exact delta(epsilon) (Balle & Wang 2018, Theorem 8) is the least whose region holds its exact ROC."""
    delta = float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu))
    tangent = float(norm.cdf(-mu / 2 - epsilon / mu))  # fpr at which the bound is met
    fpr = [tangent, 1e-4, 1e-3, 0.01, 0.1, 0.3, 0.5, 0.9]
    low, high = allowed_region(epsilon, delta, fpr)
    tpr = [float(norm.cdf(norm.ppf(x) + mu)) for x in fpr]
    assert all(lo - 1e-9 <= t <= hi + 1e-9 for lo, t, hi in zip(low, tpr, high, strict=True))
    assert high[0] - tpr[0] < 1e-9
