"""Scores: their definitions in exact arithmetic, extremes, and one observation a unit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch.nn import functional as F

from dptrain.audit.scores import ATTACKS, logit_difference, loss_score, per_unit

RNG = np.random.default_rng(0)


def test_losses_are_those_of_training() -> None:
    logits, y = RNG.normal(size=(50, 4)), RNG.integers(0, 4, 50)
    expected = -F.cross_entropy(torch.tensor(logits), torch.tensor(y), reduction="none").numpy()
    np.testing.assert_allclose(loss_score(logits, y, "multiclass"), expected, rtol=1e-12)
    z, y = RNG.normal(size=(50, 1)), RNG.integers(0, 2, 50)
    expected = -F.binary_cross_entropy_with_logits(torch.tensor(z[:, 0]), torch.tensor(y * 1.0), reduction="none")
    np.testing.assert_allclose(loss_score(z, y, "binary"), expected.numpy(), rtol=1e-12)
    np.testing.assert_allclose(loss_score(z, z[:, 0] + 2, "regression"), -4.0)


@given(arrays(np.float64, (3, 5), elements=st.floats(-30, 30)), st.integers(0, 4))
def test_logit_difference_is_the_margin_of_the_true_class(logits: NDArray, label: int) -> None:
    exact = [row[label] - max(z for k, z in enumerate(row) if k != label) for row in logits.tolist()]
    np.testing.assert_allclose(logit_difference(logits, np.full(3, label), "multiclass"), exact, rtol=1e-12)


def test_the_two_attacks_rank_rows_differently() -> None:
    """Same margin, more mass on third classes: the loss tells the rows apart, the margin does not, and conversely."""
    logits = np.array([[2.0, 1.0, -9.0, -9.0], [2.0, 1.0, 1.0, 1.0], [2.0, 0.9, 0.95, 0.95]])
    y = np.zeros(3)
    margin, loss = logit_difference(logits, y, "multiclass"), loss_score(logits, y, "multiclass")
    assert margin[0] == margin[1]
    assert loss[0] > loss[2] > loss[1]
    assert margin[2] > margin[0]


def test_logit_difference_does_not_saturate_where_probabilities_do() -> None:
    logits = np.array([[800.0, 0.0, 1.0], [900.0, 0.0, 1.0], [-900.0, 0.0, 1.0]])
    scores = logit_difference(logits, np.zeros(3), "multiclass")
    assert scores[1] - scores[0] == pytest.approx(100.0)
    assert scores[2] < -899


def test_binary_and_regression_margins() -> None:
    z = np.array([[2.0], [2.0], [-3.0]])
    np.testing.assert_array_equal(logit_difference(z, np.array([1, 0, 0]), "binary"), [2.0, -2.0, 3.0])
    np.testing.assert_array_equal(logit_difference(z, np.array([1.0, 2.0, 0.0]), "regression"), [-1.0, 0.0, -3.0])


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_outputs_of_a_diverged_model_are_ordered(attack, bad: float) -> None:
    logits = np.array([[bad, bad, bad], [bad, 0.0, 0.0], [0.0, bad, 0.0], [0.0, 1.0, 2.0]])
    scores = attack(logits, np.array([0, 0, 0, 0]), "multiclass")
    assert not np.isnan(scores).any()
    assert np.isfinite(scores[3])
    assert scores[0] == -np.inf


@pytest.mark.parametrize(
    ("outputs", "targets", "task"),
    [
        (np.zeros((3, 1)), np.zeros(3), "multiclass"),
        (np.zeros((3, 2)), np.zeros(3), "binary"),
        (np.zeros(3), np.zeros(3), "binary"),
        (np.zeros((3, 2)), np.zeros(4), "multiclass"),
        (np.zeros((3, 2)), np.array([0, 1, 2]), "multiclass"),
        (np.zeros((3, 2)), np.array([0, 1, -1]), "multiclass"),
        (np.zeros((3, 1)), np.array([0, 0.5, 1]), "binary"),
        (np.zeros((3, 1)), np.zeros(3), "ranking"),
    ],
)
def test_what_does_not_fit_is_refused(outputs: NDArray, targets: NDArray, task: str) -> None:
    with pytest.raises(ValueError):
        loss_score(outputs, targets, task)


def test_per_unit_averages_rows_and_ignores_their_order() -> None:
    scores, units = np.array([1.0, 10.0, 3.0, 20.0, 5.0]), np.array([7, 2, 7, 2, 9])
    np.testing.assert_allclose(per_unit(scores, units), [15.0, 2.0, 5.0])
    order = RNG.permutation(5)
    np.testing.assert_allclose(per_unit(scores[order], units[order]), [15.0, 2.0, 5.0])
    np.testing.assert_array_equal(per_unit(np.array([np.inf, -np.inf, 1.0]), np.array([0, 0, 1])), [-np.inf, 1.0])
    with pytest.raises(ValueError):
        per_unit(scores, units[:4])
