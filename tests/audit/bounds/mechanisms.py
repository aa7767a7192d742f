"""The worst mechanism there is, by brute force: a linear programme over all laws of guesses given coins."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array

Pairs = Sequence[tuple[float, float]]


def worst_tail(canaries: int, guesses: int, right: int, pairs: Pairs) -> float:
    """The largest P(at least ``right`` guesses are right) of any mechanism that keeps every pair (epsilon, delta) in
    each of the fair coins; guesses are -1, +1, or 0 for none, and exactly ``guesses`` are not 0."""
    coins: list[tuple[int, ...]] = list(itertools.product((-1, 1), repeat=canaries))
    settings: list[tuple[int, ...]] = list(itertools.product((-1, 0, 1), repeat=canaries))
    outputs = [t for t in settings if sum(map(abs, t)) == guesses]
    place = {(s, t): i for i, (s, t) in enumerate(itertools.product(coins, outputs))}
    gain = np.zeros(len(place))
    for (s, t), i in place.items():
        gain[i] = sum(a * b > 0 for a, b in zip(s, t, strict=True)) >= right
    edges = [(s, tuple(-x if j == i else x for j, x in enumerate(s))) for s in coins for i in range(canaries)]
    rows, columns, values, limits = [], [], [], []
    size, row = len(place), 0
    for (s, other), (epsilon, delta) in itertools.product(edges, pairs):
        first = row
        for k, t in enumerate(outputs):  # P(t | s) - e^epsilon P(t | other) <= slack
            rows += [row] * 3
            columns += [place[s, t], place[other, t], size + k]
            values += [1.0, -math.exp(epsilon), -1.0]
            limits.append(0.0)
            row += 1
        rows += [row] * len(outputs)
        columns += list(range(size, size + len(outputs)))
        values += [1.0] * len(outputs)
        limits.append(delta)
        row += 1
        size += len(outputs)
        assert row - first == len(outputs) + 1
    sums = [[float(key[0] == s) for key in place] + [0.0] * (size - len(place)) for s in coins]
    objective = np.concatenate([-gain / len(coins), np.zeros(size - len(place))])
    matrix = coo_array((values, (rows, columns)), shape=(row, size)).tocsr()
    found = linprog(objective, A_ub=matrix, b_ub=limits, A_eq=np.array(sums), b_eq=np.ones(len(coins)))
    assert found.status == 0, found.message
    return -float(found.fun)


def worst_by_counts(canaries: int, guesses: int, right: int, pairs: Pairs) -> float:
    """The same after averaging over permutations and flips: only the number of right guesses is left (one_run.py).

    Variables: p_w, the probability that w are right, and slacks. (The probability of one setting with w right would be
    the plainer variable, but coefficients would then reach over ten powers of ten, where the solver gives up.)
    """
    r = guesses
    blocks, limits, size = [], [], r + 1
    for epsilon, delta in pairs:
        cost = []
        for w in range(1, r + 1):
            hit, miss = (w, w / r), (w - 1, (r - w + 1) / r)  # one given guess is right, w in all; and turned over
            for (high, first), (low, second) in ((hit, miss), (miss, hit)):
                line = np.zeros(r + 1)
                line[high], line[low] = first, -second * math.exp(epsilon)
                blocks.append((line, size))
                cost.append(size)
                size += 1
        limits.append((cost, delta * canaries / r))
    upper = np.zeros((len(blocks) + len(limits), size))
    for i, (line, slack) in enumerate(blocks):
        upper[i, : r + 1], upper[i, slack] = line, -1.0
    for i, (cost, _) in enumerate(limits):
        upper[len(blocks) + i, cost] = 1.0
    bounds = [0.0] * len(blocks) + [limit for _, limit in limits]
    gain = np.concatenate([(np.arange(r + 1) >= right).astype(float), np.zeros(size - r - 1)])
    total = np.concatenate([np.ones(r + 1), np.zeros(size - r - 1)])[None]
    found = linprog(-gain, A_ub=upper, b_ub=bounds, A_eq=total, b_eq=[1.0])
    assert found.status == 0, found.message
    return -float(found.fun)


def worst_by_inequalities(canaries: int, guesses: int, right: int, pairs: Pairs) -> float:
    """The largest tail that the inequalities R_w <= e^epsilon H_w + delta, and their mirror images, leave (f_dp.py)."""
    r, m = guesses, canaries
    w = np.arange(r + 1)
    rows, limits = [], []
    for level, (epsilon, delta) in itertools.product(range(1, r + 1), pairs):
        hits = np.where(w >= level, w, 0) / m
        misses = np.where(w >= level - 1, r - w, 0) / m
        rows += [hits - math.exp(epsilon) * misses, math.exp(epsilon) * hits - misses]
        limits += [delta, delta - 1.0 + math.exp(epsilon)]
    found = linprog(-(w >= right).astype(float), A_ub=np.array(rows), b_ub=limits, A_eq=np.ones((1, r + 1)), b_eq=[1.0])
    assert found.status == 0, found.message
    return -float(found.fun)
