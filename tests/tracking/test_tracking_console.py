from __future__ import annotations

import io

import pytest

from dptrain.tracking.console import Progress, clock, number, summary


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_elsewhere_an_evaluation_is_one_plain_line() -> None:
    stream = io.StringIO()
    with Progress(1170, 3.0, stream) as progress:
        progress.update(120)
        progress.evaluation({"step": 120, "public_loss": 0.5123, "test_accuracy": 0.873, "epsilon": 1.42, "seconds": 3})
        progress.update(121)
    text = stream.getvalue()
    assert text.count("\n") == 1 and "\r" not in text
    assert text.startswith("step 120/1170  public_loss 0.512  test_accuracy 0.873  epsilon 1.42/3.00  left ")


def test_without_privacy_no_epsilon_is_shown() -> None:
    stream = io.StringIO()
    Progress(10, None, stream).evaluation({"step": 10, "public_loss": float("nan"), "test_mae": 2.0})
    assert stream.getvalue() == "step 10/10  public_loss n/a  test_mae 2.000  left 0:00\n"


def test_a_terminal_gets_a_bar_with_the_budget() -> None:
    stream = Terminal()
    with Progress(20, 3.0, stream) as progress:
        progress.update(5)
        progress.evaluation({"step": 5, "public_loss": 0.5, "test_accuracy": 0.9, "epsilon": 1.25})
        progress.update(20)
    text = stream.getvalue()
    assert "loss 0.500, accuracy 0.900, ε 1.25/3.00, " in text
    assert "20/20" in text.rsplit("\r", 1)[-1]


def test_internal_metrics_are_never_shown() -> None:
    for stream in (io.StringIO(), Terminal()):
        with Progress(20, 3.0, stream) as progress:
            progress.evaluation({"step": 5, "member_loss": 0.123456, "clipped_share": 0.654321, "batch_size": 77})
        assert not any(word in stream.getvalue() for word in ("0.123", "0.654", "77"))


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (41.4, "0:41"), (59.6, "1:00"), (3600, "1:00:00")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_numbers_that_are_none() -> None:
    assert number(None) == number(float("nan")) == number("x") == "n/a"


def test_summary_aligns_values_and_cuts_nothing() -> None:
    stream = io.StringIO()
    summary([("accuracy", "0.9"), ("ε", "3"), ("report", "x" * 200)], stream)
    lines = stream.getvalue().splitlines()
    assert [line.split()[-1] for line in lines] == ["0.9", "3", "x" * 200]
    assert len({len(line) - len(line.split()[-1]) for line in lines}) == 1
