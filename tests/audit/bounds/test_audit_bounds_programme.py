"""The tail of the number of right guesses against the optimum over all mechanisms with few coins."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.sparse import coo_matrix

from dptrain.audit.bounds.curve import dp_curve
from dptrain.audit.bounds.f_dp import tail_at_most
from dptrain.audit.bounds.one_run import published_tail, tail


def largest_tail(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """The largest P(W >= right) of all mechanisms that are (epsilon, delta)-DP in every coin.

    A linear programme. Variables: the probability of every outcome (which coins are guessed about, and what is guessed)
    for every setting of the coins; and for every ordered pair of neighbours, what an outcome of one exceeds e^epsilon
    times the other's by.
    """
    coins = list(itertools.product((0, 1), repeat=canaries))
    outcomes = [
        dict(zip(about, guess, strict=True))
        for about in itertools.combinations(range(canaries), guesses)
        for guess in itertools.product((0, 1), repeat=guesses)
    ]
    pairs = [(i, j) for i, a in enumerate(coins) for j, b in enumerate(coins) if np.abs(np.subtract(a, b)).sum() == 1]
    count = len(outcomes)
    start = len(coins) * count
    goal = np.zeros(start + len(pairs) * count)
    for i, coin in enumerate(coins):
        for o, guess in enumerate(outcomes):
            goal[i * count + o] = -(sum(coin[k] == said for k, said in guess.items()) >= right) / len(coins)
    entries: list[tuple[int, int, float]] = []
    most: list[float] = []
    for p, (i, j) in enumerate(pairs):
        for o in range(count):
            excess = start + p * count + o
            entries += [(len(most), i * count + o, 1.0), (len(most), j * count + o, -np.exp(epsilon))]
            entries.append((len(most), excess, -1.0))
            most.append(0.0)
        entries += [(len(most), start + p * count + o, 1.0) for o in range(count)]
        most.append(delta)
    rows, columns, values = zip(*entries, strict=True)
    limits = coo_matrix((values, (rows, columns)), shape=(len(most), len(goal))).tocsr()
    each = np.repeat(np.arange(len(coins)), count)
    whole = coo_matrix((np.ones(start), (each, np.arange(start))), shape=(len(coins), len(goal))).tocsr()
    found = linprog(goal, A_ub=limits, b_ub=most, A_eq=whole, b_eq=np.ones(len(coins)), method="highs")
    assert found.success
    return -float(found.fun)


CASES = [(1, 1), (2, 1), (2, 2), (3, 2), (3, 3)]


@pytest.mark.parametrize(("canaries", "guesses"), CASES)
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.5, 3.0])
@pytest.mark.parametrize("delta", [0.0, 1e-3, 0.05, 0.2])
def test_the_tail_is_the_best_that_any_mechanism_can_do(
    canaries: int, guesses: int, epsilon: float, delta: float
) -> None:
    for right in range(1, guesses + 1):
        truth = largest_tail(canaries, guesses, right, epsilon, delta)
        stated = tail(canaries, guesses, right, epsilon, delta)
        assert stated == pytest.approx(min(1.0, truth), abs=1e-7) or (stated == 1.0 and truth > 0.9)
        if delta > 0.0:
            assert tail_at_most(canaries, guesses, right, dp_curve(epsilon, delta)) >= truth - 1e-7


def test_the_printed_theorem_is_below_what_a_mechanism_reaches() -> None:
    """Why ``tail`` is used, and not the bound as it is printed: see the module's docstring."""
    assert largest_tail(2, 2, 1, 1.5, 0.05) > 0.977
    assert published_tail(2, 2, 1, 1.5, 0.05) < 0.974


def test_underflow_does_not_hide_delta() -> None:
    """Of 5,000 guesses at epsilon 0 all but never 3,000 are right, and delta is what is left."""
    assert 0.0 < tail(5000, 5000, 2700, 0.0, 1e-9) < tail(5000, 5000, 2700, 0.0, 1e-5) < 1.0
    assert tail(1000, 1000, 1000, 5.0, 1e-3) > tail(1000, 1000, 1000, 5.0, 0.0) > 0.0
