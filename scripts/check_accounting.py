"""Epsilon of ten settings by four routes: ours, another accountant's bracket, RDP, and the exact formula at q = 1.

python scripts/check_accounting.py            prints the table of docs/results/accounting.md
"""

from __future__ import annotations

import math
import time
import warnings
from typing import Any

from opacus.accountants import PRVAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from dptrain.privacy.accounting import epsilon, gaussian, poisson_sampled, rdp_epsilon, self_composed

SETTINGS = [
    (1.0, 0.01, 1000, 1e-5),
    (0.6, 0.001, 10_000, 1e-5),
    (3.4, 8192 / 60000, 293, 1e-5),
    (1.809, 2048 / 60000, 1172, 1e-5),
    (2.0, 0.05, 500, 1e-6),
    (0.8, 0.004, 2000, 1e-6),
    (5.0, 0.5, 100, 1e-5),
    (1.2, 0.01, 1000, 1e-5),
    (10.0, 0.2, 300, 1e-7),
    (0.7, 0.02, 200, 1e-4),
]
GAUSSIAN = [(2.0, 50, 1e-5), (5.0, 10, 1e-6), (20.0, 100, 1e-5), (1.0, 1, 1e-5)]


def bracket(sigma: float, q: float, steps: int, delta: float) -> tuple[float, float]:
    """Lower and upper bound of Gopi et al. 2021, as Opacus computes it."""
    accountant = PRVAccountant()
    accountant.history = [(sigma, q, steps)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Optimal order is the largest alpha")
        low, _, high = accountant._get_dprv(eps_error=0.01, delta_error=delta / 1000).compute_epsilon(
            delta, delta / 1000, 0.01
        )
    return low, high


def exact(sigma: float, delta: float) -> float:
    """Balle and Wang 2018, theorem 8, inverted."""

    def excess(eps: float) -> float:
        a, b = 1 / (2 * sigma), eps * sigma
        return float(norm.cdf(a - b) - math.exp(eps) * norm.cdf(-a - b) - delta)

    root: Any = brentq(excess, 0, 400, xtol=1e-10)
    return float(root)


def main() -> None:
    """Prints both tables."""
    print("| noise multiplier | q | steps | delta | epsilon (ours) | PRV bracket | inside | RDP | CPU s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for sigma, q, steps, delta in SETTINGS:
        event = self_composed(steps, poisson_sampled(q, gaussian(sigma)))
        start = time.process_time()
        ours = epsilon(event, delta)
        seconds = time.process_time() - start
        low, high = bracket(sigma, q, steps, delta)
        inside = "yes" if low <= ours <= high else "NO"
        rdp = rdp_epsilon(event, delta)
        print(
            f"| {sigma:g} | {q:.6g} | {steps} | {delta:g} | {ours:.5f} | {low:.5f} to {high:.5f} | {inside} "
            f"| {rdp:.5f} | {seconds:.2f} |"
        )
    print("\n| noise multiplier | steps (q = 1) | delta | epsilon (ours) | exact Gaussian | ratio - 1 |")
    print("|---|---|---|---|---|---|")
    for sigma, steps, delta in GAUSSIAN:
        ours = epsilon(self_composed(steps, poisson_sampled(1.0, gaussian(sigma))), delta)
        truth = exact(sigma / math.sqrt(steps), delta)
        print(f"| {sigma:g} | {steps} | {delta:g} | {ours:.6f} | {truth:.6f} | {ours / truth - 1:.1e} |")


if __name__ == "__main__":
    main()
