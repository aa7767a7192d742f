"""What choosing the best of several runs costs, beside what today's tools would report; docs/results/tuning.md.

python scripts/check_tuning.py
"""

from __future__ import annotations

import time

from dptrain.privacy import accounting
from dptrain.privacy.accounting import Event
from dptrain.privacy.selection import quantile, trials_with_mean

DELTA = 1e-5
MEAN = 40
RUN = accounting.self_composed(1000, accounting.poisson_sampled(0.01, accounting.gaussian(1.2)))
COARSE_ORDERS = [1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0, 3.5, 4.0, 4.5, *range(5, 64), 128, 256, 512]
"""The orders that the first accountants of the field came with: most whole numbers, few between them."""
FIELD = {"one run": 1.30, "logarithmic": 2.83, "geometric": 3.48, "poisson": 7.23, "40 runs, all seen": 10.9}
"""The figures that are known of this example."""


def by_coarse_orders(event: Event) -> float:
    """The same price at the coarse orders alone: a check that the difference to ``FIELD`` is that of the grid."""
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(COARSE_ORDERS)
    accountant.compose(accounting.to_dp_event(event))
    return float(accountant.get_epsilon(DELTA))


def main() -> None:
    """Prints the table; every known figure must be met by one of the two grids of orders, to its last digit."""
    version = accounting.method()["version"]
    print(f"q = 0.01, noise multiplier 1.2, 1,000 steps, delta {DELTA:g}; dp-accounting {version}")
    print(f"{'':<20}{'known':>7}{'here':>9}{'coarse':>9}")
    one = accounting.epsilon(RUN, DELTA)
    show("one run", one, one, "PLD; " + f"by Renyi DP {accounting.rdp_epsilon(RUN, DELTA):.4f}")
    for name in ("logarithmic", "geometric", "poisson"):
        trials, start = trials_with_mean(name, MEAN), time.perf_counter()
        event = accounting.repeat_and_select(RUN, trials)
        price = accounting.epsilon(event, DELTA)
        seconds = time.perf_counter() - start
        half, most = quantile(trials, 0.5), quantile(trials, 0.95)
        note = f"K at most {half} in half of all draws, {most} in 19 of 20; priced in {seconds:.2f} s"
        show(name, price, by_coarse_orders(event), note)
    together = accounting.composed([RUN] * MEAN)
    grid = f"a grid is charged {accounting.epsilon(together, DELTA):.4f} (PLD)"
    show("40 runs, all seen", accounting.rdp_epsilon(together, DELTA), by_coarse_orders(together), grid)


def show(name: str, here: float, coarse: float, note: str) -> None:
    """One line; refuses a figure that neither grid of orders reproduces."""
    digit = 0.05 if FIELD[name] > 10 else 0.005
    known = FIELD[name]
    if not (here <= known + digit and min(abs(here - known), abs(coarse - known)) <= digit + 1e-9):
        raise SystemExit(f"{name}: {here:.4f} (coarse orders: {coarse:.4f}) where {known} is known")
    print(f"{name:<20}{known:>7g}{here:>9.4f}{coarse:>9.4f}  {note}")


if __name__ == "__main__":
    main()
