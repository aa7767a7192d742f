"""From scores to guesses: the highest are guessed to be in, as many of the lowest to be out, the rest left alone.

How many guesses are made is fixed before a score is seen (Steinke, Nasr & Jagielski 2023, Algorithm 1). Where several
numbers are tried, the error is shared among them (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dptrain.audit.bounds.bound import Coins, Floats

SHARES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Shares of the canaries that are guessed about, half of them "in" and half "out"."""


def guess_counts(canaries: int, shares: Sequence[float] = SHARES) -> tuple[int, ...]:
    """Numbers of guesses to try: even, at least 2 (1 where there is one canary), at most all, without repetition.

    Raises:
        ValueError: no share, or one outside (0, 1].
    """
    if not shares or not all(0.0 < share <= 1.0 for share in shares):
        raise ValueError(f"shares {tuple(shares)} are not in (0, 1]")
    if canaries == 1:
        return (1,)
    return tuple(sorted({2 * min(max(1, round(canaries * share / 2)), canaries // 2) for share in shares}))


def right_guesses(scores: Floats, included: Coins, counts: Sequence[int]) -> list[int]:
    """How many of the guesses are right, for each number of guesses; an odd one guesses one more "in".

    Ties are broken by a fixed shuffle, which knows neither scores nor coins: canaries may come sorted by coin, and
    the order in which they come must not decide.
    """
    shuffle = np.random.default_rng(len(scores)).permutation(len(scores))
    order = shuffle[np.argsort(-scores[shuffle], kind="stable")]
    coins = included[order]
    highest = np.concatenate([[0], np.cumsum(coins)])
    lowest = np.concatenate([[0], np.cumsum(~coins[::-1])])
    return [int(highest[(count + 1) // 2] + lowest[count // 2]) for count in counts]


def strongest(
    scores: Floats,
    included: Coins,
    confidence: float,
    shares: Sequence[float],
    evidence: Callable[[int, int, int, float], float],
) -> tuple[float, dict[str, Any]]:
    """The most that any number of guesses shows, the error shared equally among them, and what it was read from.

    Args:
        scores, included: as ``checked`` gives them.
        confidence: in (0, 1), of all numbers of guesses together.
        shares: of the canaries that are guessed about, fixed in advance.
        evidence: (canaries, guesses, right, error) -> what so many right guesses show, below the truth with a chance of
            at least 1 - error.
    """
    counts = guess_counts(len(scores), shares)
    right = right_guesses(scores, included, counts)
    error = (1.0 - confidence) / len(counts)
    found = [evidence(len(scores), r, v, error) for r, v in zip(counts, right, strict=True)]
    best = int(np.argmax(found))
    details = {"guesses": counts[best], "right": right[best], "tried": list(counts), "canaries": len(scores)}
    return found[best], details
