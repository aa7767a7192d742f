from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dptrain.report.phrases import MISSING, duration, epsilon_up, interval, percent, plain, rate, small


@given(st.floats(0, 1e6))
def test_epsilon_is_never_shown_smaller_than_it_is(epsilon: float) -> None:
    shown = float(epsilon_up(epsilon))
    assert epsilon <= shown <= epsilon + 0.001 + 1e-9 * epsilon


@given(st.floats(1e-300, 1e300))
def test_small_keeps_the_value(value: float) -> None:
    assert float(small(value)) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(
    ("value", "text"), [(1e-5, "1e-5"), (2.5e-6, "2.5e-6"), (1e-10, "1e-10"), (0.01, "0.01"), (0, "0"), (1e-4, "1e-4")]
)
def test_deltas_are_written_like_settings(value: float, text: str) -> None:
    assert small(value) == text


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "12", True, [], {}])
def test_what_is_no_number_is_said_to_be_missing(value: object) -> None:
    shown = [show(value) for show in (plain, small, epsilon_up, percent, rate, duration)]
    assert shown == [MISSING] * 6 and interval(value, as_percent=False) == MISSING


def test_numbers_people_read() -> None:
    assert plain(26010) == "26,010" and plain(0.17812) == "0.1781" and plain(1.2e-7) == "1.2e-7"
    assert rate(0.001) == "0.1\u00a0%" and percent(0.8734) == "87.3\u00a0%"
    assert [duration(s) for s in (3.14, 61, 7300)] == ["3.1 s", "1 min 1 s", "2 h 1 min"]


def test_an_interval_shows_its_ends_where_it_has_them() -> None:
    whole = {"value": 0.5, "low": 0.4, "high": 0.6}
    assert interval(whole, as_percent=False).replace("\u00a0", " ") == "0.500 [0.400, 0.600]"
    assert interval({"tpr": 0.014, "low": None}, as_percent=True).replace("\u00a0", " ") == "1.4 %"
