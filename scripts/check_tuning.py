"""What choosing the best of several runs costs, beside what today's tools would report; docs/results/tuning.md.

python scripts/check_tuning.py
"""

from __future__ import annotations

import time

from dptrain.privacy import accounting
from dptrain.privacy.selection import quantile, trials_with_mean

DELTA = 1e-5
MEAN = 40
RUN = accounting.self_composed(1000, accounting.poisson_sampled(0.01, accounting.gaussian(1.2)))


def main() -> None:
    """Prints the table."""
    print(
        f"q = 0.01, noise multiplier 1.2, 1,000 steps, delta {DELTA:g}; dp-accounting {accounting.method()['version']}"
    )
    print(f"{'one run':<38}{accounting.epsilon(RUN, DELTA):8.4f}  PLD")
    for name in ("logarithmic", "geometric", "poisson"):
        trials, start = trials_with_mean(name, MEAN), time.perf_counter()
        price = accounting.epsilon(accounting.repeat_and_select(RUN, trials), DELTA)
        seconds = time.perf_counter() - start
        half, most = quantile(trials, 0.5), quantile(trials, 0.95)
        text = f"best of a secret number, {name}"
        print(f"{text:<38}{price:8.4f}  RDP; K at most {half} in half, {most} in 19 of 20 draws; {seconds:.2f} s")
    together = accounting.composed([RUN] * MEAN)
    print(f"{f'{MEAN} runs, all seen':<38}{accounting.rdp_epsilon(together, DELTA):8.4f}  RDP")
    print(f"{'':<38}{accounting.epsilon(together, DELTA):8.4f}  PLD, what a grid is charged")


if __name__ == "__main__":
    main()
