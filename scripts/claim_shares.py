"""Which shares of the canaries should the test of a claim guess about? Power and level on simulated scores.

python scripts/claim_shares.py
"""

from __future__ import annotations

import numpy as np

from dptrain.audit.bounds.curve import Curve, gaussian_curve, gaussian_mu
from dptrain.audit.bounds.f_dp import possible
from dptrain.audit.bounds.guesses import guess_counts, right_guesses

CANDIDATES = ((0.02, 0.05, 0.1, 0.2, 0.4, 0.8), (0.05, 0.2), (0.1, 0.4, 0.8), (0.1, 0.4), (0.2, 0.8), (0.4, 0.8))
RUNS, LEVEL, DELTA = 300, 0.05, 1e-5


def least_rejected(canaries: int, guesses: int, curve: Curve, level: float) -> int:
    """The least number of right guesses that this curve allows with a chance below ``level`` only."""
    low, high = 0, guesses + 1
    while high - low > 1:
        middle = (low + high) // 2
        allowed = possible(canaries, guesses, middle, level, curve.least_alarms)
        low, high = (middle, high) if allowed else (low, middle)
    return high


def rejected(canaries: int, epsilon: float, stronger: float, rng: np.random.Generator) -> list[float]:
    """For each candidate, the share of runs rejected whose noise is the claimed one over ``stronger``."""
    mu = gaussian_mu(epsilon, DELTA)
    curve = gaussian_curve(mu)
    limits = []
    for shares in CANDIDATES:
        counts = guess_counts(canaries, shares)
        limits.append([(count, least_rejected(canaries, count, curve, LEVEL / len(counts))) for count in counts])
    found = np.zeros(len(CANDIDATES))
    for _ in range(RUNS):
        coins = rng.random(canaries) < 0.5
        scores = stronger * mu * coins + rng.standard_normal(canaries)
        for i, rules in enumerate(limits):
            right = right_guesses(scores, coins, [count for count, _ in rules])
            found[i] += any(seen >= least for seen, (_, least) in zip(right, rules, strict=True))
    return (found / RUNS).tolist()


def main() -> None:
    """A Markdown table: one row for each number of canaries, epsilon and noise."""
    print("| canaries | ε | noise | " + " | ".join(", ".join(f"{s:g}" for s in c) for c in CANDIDATES) + " |")
    print("|---|---|---|" + "---|" * len(CANDIDATES))
    rng = np.random.default_rng(0)
    for canaries in (100, 200, 300, 1000):
        for epsilon in (1.0, 2.0, 4.0, 8.0):
            for stronger, noise in ((1.0, "as claimed"), (4.0, "a quarter"), (2.0, "half")):
                shares = " | ".join(f"{x:.0%}" for x in rejected(canaries, epsilon, stronger, rng))
                print(f"| {canaries:,} | {epsilon:g} | {noise} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
