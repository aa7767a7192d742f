from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from dptrain.report import facts
from dptrain.report.html import render_html
from dptrain.report.plots import figures
from dptrain.report.record import read_record
from dptrain.report.text import render_text
from dptrain.report.tradeoff import Tradeoff, draw_tradeoff, lower_bound, tradeoff_of
from dptrain.run_folder import RunFolder, read_json, write_json

MakeRun = Callable[..., RunFolder]


def gaussian_event(sigma: float) -> dict[str, Any]:
    return {"type": "self_composed", "count": 1, "event": {"type": "gaussian", "noise_multiplier": sigma}}


def with_statement(folder: RunFolder, **changes: Any) -> RunFolder:
    statement = read_json(folder.statement)
    for path, value in changes.items():
        block, name = path.split("__")
        statement.setdefault(block, {})[name] = value
    write_json(folder.statement, statement)
    return folder


def test_the_curve_of_a_gaussian_lies_just_below_the_closed_form(make_run: MakeRun) -> None:
    """One Gaussian release at sigma has f(a) = Phi(Phi^-1(1-a) - 1/sigma) (Dong, Roth & Su 2022, equation 6)."""
    folder = with_statement(make_run(), mechanism__event=gaussian_event(1.5), guarantee__epsilon=9.0)
    curve = tradeoff_of(read_record(folder, "public"))
    assert curve is not None and curve.source == "event"
    for alpha, beta in zip(curve.alphas, curve.betas, strict=True):
        exact = float(norm.cdf(norm.isf(alpha) - 1 / 1.5)) if alpha > 0 else 1.0
        assert beta <= exact + 1e-9
        assert beta >= exact - 0.012, alpha


@given(st.floats(0, 20), st.floats(0, 1), st.floats(0, 1))
def test_one_pair_bounds_as_the_definition_says(epsilon: float, delta: float, alpha: float) -> None:
    """Wasserman & Zhou 2010: no test has power above e^eps alpha + delta, and the mirror image of that."""
    [beta] = lower_bound([(delta, epsilon)], [alpha])
    powers = [1.0, math.exp(epsilon) * alpha + delta, 1 - math.exp(-epsilon) * (1 - delta - alpha)]
    assert beta == pytest.approx(max(0.0, 1 - min(powers)), abs=1e-9)
    assert beta <= 1 - alpha + 1e-9


def test_points_of_the_statement_come_first_and_are_never_read_in_its_favour(make_run: MakeRun) -> None:
    points = [{"alpha": 0.0, "beta": 1.0}, {"alpha": 0.1, "beta": 0.6}, {"alpha": 1.0, "beta": 0.0}]
    folder = with_statement(make_run(), guarantee__tradeoff=points)
    curve = tradeoff_of(read_record(folder, "public"))
    assert curve is not None and curve == Tradeoff([0.0, 0.1, 1.0], [1.0, 0.6, 0.0], "points")
    assert curve.missed(0.05) == 0.6 and curve.missed(0.1) == 0.6 and curve.missed(0.2) == 0.0
    assert (
        curve.drawn(0.05) == pytest.approx(0.2) and curve.drawn(0.1) == 0.4 and curve.drawn(0.55) == pytest.approx(0.7)
    )


@pytest.mark.parametrize(
    "change",
    [
        {"guarantee__claim": "stopped_early"},
        {"tuning__strategy": "random search"},
        {"mechanism__event": {"type": "something", "module": "os"}},
        {"mechanism__event": {}},
        {"mechanism__event": "rm -rf"},
    ],
)
def test_without_an_event_that_is_the_claim_the_pairs_bound_the_curve(
    make_run: MakeRun, change: dict[str, Any]
) -> None:
    given_event = {"mechanism__event": gaussian_event(50.0)} | change
    curve = tradeoff_of(read_record(with_statement(make_run(), **given_event), "public"))
    assert curve is not None
    assert curve.missed(0.5) < 0.1, "the event of a quieter mechanism was believed"


@pytest.mark.parametrize("broken", [None, [], [{}], [{"alpha": "x", "beta": None}], {"alpha": 1}, "points"])
def test_damaged_points_are_left_out(make_run: MakeRun, broken: object) -> None:
    curve = tradeoff_of(read_record(with_statement(make_run(), guarantee__tradeoff=broken), "public"))
    assert curve is not None and curve.source == "pairs"


def test_a_run_without_a_promise_has_no_curve(make_run: MakeRun) -> None:
    record = read_record(make_run(private=False), "internal")
    assert tradeoff_of(record) is None and draw_tradeoff(record) is None
    assert facts.limits(record) == [] and facts.limits_source(record) == ""
    assert "What anyone can find out, at most" not in render_html(record)


def test_the_attack_is_drawn_beside_the_curve_in_the_internal_tier_only(make_run: MakeRun) -> None:
    folder = make_run()
    inside, outside = (figures(read_record(folder, tier))["errors"] for tier in ("internal", "public"))
    assert "logit difference" in inside
    assert "logit" not in outside and "loss" not in outside
    assert "guessing" in inside and "guessing" in outside


def test_page_and_terminal_say_the_same_limits(make_run: MakeRun) -> None:
    record = read_record(make_run(), "public")
    page, text = render_html(record), render_text(record)
    assert len(facts.limits(record)) == 4
    for alarms, found in facts.limits(record):
        assert f"<td>{alarms}</td><td>{found}</td>" in page
        assert f"{found} of members" in text
