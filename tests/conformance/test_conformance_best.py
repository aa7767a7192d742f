"""The model released as the best: by public looks alone, of every attempt; anything else that chose is found."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from dptrain.conformance.best import KINDS, best_released, judged
from dptrain.conformance.stand import Stand
from dptrain.conformance.whole_run import Traces, killed_and_resumed
from dptrain.training.loop import StepReport, Trainer
from dptrain.training.private_metrics import Best


@pytest.fixture(scope="module")
def traces(stand: Stand) -> dict[str, Traces]:
    found = {name: killed_and_resumed(stand, kind.settings) for name, kind in KINDS.items()}
    assert all(isinstance(one, Traces) for one in found.values()), found
    return found  # type: ignore[return-value]


def test_honest_runs_pass(stand: Stand) -> None:
    found = best_released(stand)
    assert found.passed, found.says


@pytest.mark.parametrize("which", KINDS)
def test_honest_traces_pass_and_other_weights_are_named(which: str, traces: dict[str, Traces]) -> None:
    assert judged(KINDS[which], traces[which])[0] is None
    other = deepcopy(traces[which])
    other.weights[0] = other.weights[0] + 1e-2
    wrong, _ = judged(KINDS[which], other)
    assert wrong is not None and "that of no look" in wrong


def test_the_model_of_another_look_is_named(traces: dict[str, Traces]) -> None:
    which = "labels the other way round"
    other = deepcopy(traces[which])
    other.weights = [mean.clone() for mean in other.after.states[7]["mean"]]
    wrong, _ = judged(KINDS[which], other)
    assert wrong is not None and "that of step 7" in wrong


def test_a_look_that_is_put_on_record_otherwise_is_named(traces: dict[str, Traces]) -> None:
    which = "labels the other way round"
    other = deepcopy(traces[which])
    other.records[0]["test_log_loss"] += 0.01
    wrong, _ = judged(KINDS[which], other)
    assert wrong is not None and "public rows and releases give" in wrong


def _chosen_by(monkeypatch: pytest.MonkeyPatch, value: Callable[[Any, dict[str, Any], float], float]) -> None:
    """``Best`` keeps what this gives the smallest value, out of itself, the record and the draw's loss."""
    seen, offer, clipped_sum = {"loss": 0.0}, Best.offer, Trainer._clipped_sum

    def watched(self: Trainer, step: int, total: Any) -> StepReport:
        report = clipped_sum(self, step, total)
        seen["loss"] = report.loss / max(1, report.rows)
        return report

    def chosen(self: Any, record: dict[str, Any]) -> None:
        offer(self, {**record, self.name: -self._sign * value(self, record, seen["loss"])})

    monkeypatch.setattr(Trainer, "_clipped_sum", watched)
    monkeypatch.setattr(Best, "offer", chosen)


@pytest.mark.parametrize(
    "value",
    [
        lambda best, record, loss: loss,
        lambda best, record, loss: -float(record["step"]),
        lambda best, record, loss: best._sign * record[best.name],
    ],
    ids=["by private loss", "the last", "the worst"],
)
def test_another_choice_is_found(
    value: Callable[[Any, dict[str, Any], float], float], stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    _chosen_by(monkeypatch, value)
    found = best_released(stand)
    assert found.passed is False and "the best by public rows" in found.says


def test_parameters_instead_of_their_average_are_found(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best look is of the average, and so must the model be that is kept."""
    from contextlib import nullcontext

    original = Best.__init__
    monkeypatch.setattr(
        Best, "__init__", lambda self, module, name, lower, shown=None: original(self, module, name, lower, nullcontext)
    )
    found = best_released(stand)
    assert found.passed is False and "that of no look" in found.says


def test_a_best_that_is_forgotten_when_a_run_goes_on_is_found(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Best, "take_up", lambda self, kept: None)
    assert best_released(stand).passed is False
