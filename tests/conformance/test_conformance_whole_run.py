"""The whole run that is killed and taken up again: honest parts pass, and what is off in its traces is named."""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from dptrain.conformance import left_behind as judged
from dptrain.conformance.left_behind import as_it_goes, claimed, counted, kept, left_behind
from dptrain.conformance.stand import Stand
from dptrain.conformance.whole_run import KILLED, STEPS, Traces, killed_and_resumed
from dptrain.training import stages
from dptrain.training.average import Average
from dptrain.training.budget import Budget


@pytest.fixture(scope="module")
def honest(stand: Stand) -> Traces:
    traces = killed_and_resumed(stand)
    assert isinstance(traces, Traces), traces
    return traces


def test_an_honest_run_passes_and_leaves_nothing(stand: Stand, honest: Traces) -> None:
    assert len(honest.before.noise) == KILLED and honest.after.first >= KILLED
    assert len(honest.before.noise) + len(honest.after.noise) <= STEPS
    assert all(found.passed for found in (as_it_goes(honest), counted(honest), claimed(stand, honest), kept(honest)))
    assert not list(Path(os.environ["DPTRAIN_HOME"]).rglob("ledger.db"))  # the user's own account was not opened


def _noise_again(traces: Traces) -> None:
    traces.after.noise[0] = traces.before.noise[0].clone()


def _uncounted(traces: Traces) -> None:
    traces.after.first = KILLED - 1


def _undercharged(traces: Traces) -> None:
    traces.charged = STEPS - 1
    traces.after.noise.append(torch.ones_like(traces.before.noise[0]))


def _cheaper(traces: Traces) -> None:
    traces.statement["guarantee"]["epsilon"] *= 0.9


def _other_noise(traces: Traces) -> None:
    traces.statement["mechanism"]["noise_multiplier"] = 2.9


def _private_metric(traces: Traces) -> None:
    traces.records[0]["member_loss"] = 0.7


def _noise_kept(traces: Traces) -> None:
    traces.kept.append("noise.3")


def _leftover(traces: Traces) -> None:
    traces.files.add("resume/000001-abc/tensors.sealed")


def _other_weights(traces: Traces) -> None:
    traces.weights[0] = traces.weights[0] + 1e-3


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (_noise_again, counted),
        (_uncounted, counted),
        (_undercharged, counted),
        (_cheaper, "claimed"),
        (_other_noise, "claimed"),
        (_private_metric, kept),
        (_noise_kept, kept),
        (_leftover, kept),
        (_other_weights, as_it_goes),
    ],
)
def test_wrong_traces_are_named(change: Callable[[Traces], None], check: Any, stand: Stand, honest: Traces) -> None:
    traces = deepcopy(honest)
    change(traces)
    found = claimed(stand, traces) if check == "claimed" else check(traces)
    assert found.passed is False


def test_a_run_that_forgets_what_it_declared_is_found(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on one step before what the ledger counts: the killed step is taken once more."""
    executed = Budget.executed.fget
    assert executed is not None
    monkeypatch.setattr(Budget, "executed", property(lambda self: max(0, executed(self) - 1)))
    assert False in {found.passed for found in left_behind(stand)}


def test_an_average_that_is_not_taken_up_is_found(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Average, "take_up", lambda self, tensors: None)
    found = {one.check: one for one in left_behind(stand)}
    assert found["whole run"].passed is False


def test_a_public_metric_of_private_rows_is_found(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    original = stages.evaluate

    def leaking(module: Any, rows: Any, *rest: Any) -> dict[str, float]:
        values = original(module, rows, *rest)
        return values | {"public_loss": values["public_loss"] + 0.01}

    monkeypatch.setattr(stages, "evaluate", leaking)
    found = {one.check: one for one in left_behind(stand)}
    assert found["whole run"].passed is False and "public_loss" in found["whole run"].says


def test_an_attempt_that_falls_over_is_said(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judged, "killed_and_resumed", lambda stand: "the first attempt fell over: IndexError: no")
    (found,) = left_behind(stand)
    assert found.passed is False and "IndexError" in found.says
