"""White-box audit of real DP-SGD runs: how much of epsilon do likelihood-ratio scores prove from one run?

    python scripts/audit_white_box.py [--runs 10] [--simulations 100] [--only 0.1x100]

Every run is the trainer of ``dptrain train`` with Poisson draws, clipping, secure noise, public divisor and self-check,
on a model whose parameters are one coordinate a canary. A canary's gradient is twice the clipping norm along its own
coordinate, and is clipped; a fair coin puts the canary into the data, or leaves it out, for the whole run. The auditor
reads each step's released gradient. Its score is the exact log-likelihood ratio of the run's own mechanism
(``score_law.py``), summed over steps.

Prints Markdown, per mechanism:

* real: mean (least, largest) of the bound over real runs; ``optimal`` in every row, ``gaussian`` too where q = 1;
* ideal: mean of ``optimal`` over simulated scores of exactly that law;
* best test: mean of what a Neyman-Pearson test of the coins, given all scores, would show that is told the true noise
  and compares it with each other size in turn. No audit can do that: it knows what is asked. Its threshold is the
  normal quantile;
* Gaussian equivalent: epsilon at mu - z 2 / sqrt(m), where mu is the Gaussian mechanism of the same (epsilon, delta):
  what the difference of means shows on average that is told spread and law.
"""

from __future__ import annotations

import argparse
import math
import sys
import time

import numpy as np
import torch
from scipy.special import expit, ndtri
from torch import Tensor, nn

from dptrain.audit.bounds.bound import Coins, Floats
from dptrain.audit.bounds.curve import gaussian_epsilon, gaussian_mu
from dptrain.audit.bounds.gaussian import gaussian
from dptrain.audit.bounds.optimal import LEAST, MOST, RATIO, optimal
from dptrain.audit.bounds.score_law import SampledGaussian
from dptrain.config import ExecutionConfig, OptimizerConfig, PrivacyConfig, TrainConfig
from dptrain.data.canaries import toss_canaries
from dptrain.data.source import Rows
from dptrain.keystream import Keystream
from dptrain.privacy.plan import Plan, compile_plan
from dptrain.training.assemble import build_trainer

CANARIES, EPSILON, DELTA, CONFIDENCE = 1000, 8.0, 1e-5, 0.95
MECHANISMS = ((1.0, 1), (1.0, 10), (0.5, 20), (0.1, 100), (0.02, 500))
"""(q, steps); the noise follows from epsilon."""


def settings(rate: float, steps: int) -> TrainConfig:
    """A run at epsilon 8 in which every unit is a canary."""
    privacy = PrivacyConfig(
        epsilon=EPSILON, delta=DELTA, expected_batch_size=rate * CANARIES, epochs=None, steps=steps, noise="secure"
    )
    execution = ExecutionConfig(physical_batch_size=max(32, int(0.75 * rate * CANARIES)))
    return TrainConfig(privacy=privacy, execution=execution, optimizer=OptimizerConfig(lr=0.1))


def own_direction(outputs: Tensor, targets: Tensor) -> Tensor:  # (R, 1), (R,) -> (R,)
    """A loss whose gradient is the row itself, whatever the parameters are."""
    return outputs.squeeze(-1)


def real_run(config: TrainConfig, plan: Plan) -> tuple[Floats, Coins]:
    """(m, steps) readings of each canary's coordinate in units of the sensitivity, and the coins, of one run."""
    assert plan.mechanism is not None
    coins = toss_canaries("natural", CANARIES).included
    inside = torch.from_numpy(np.flatnonzero(coins))
    inputs = torch.zeros(len(inside), CANARIES)
    inputs[torch.arange(len(inside)), inside] = 2.0 * plan.mechanism.clipping_norm
    module = nn.Linear(CANARIES, 1, bias=False)
    rows = Rows(inputs, torch.zeros(len(inside)), inside)  # unit i is canary i; one that is left out has no row
    trainer = build_trainer(config, plan, module, rows, own_direction, Keystream())
    to_sum, seen = plan.mechanism.divisor / plan.mechanism.sensitivity, []

    def note(*_: object) -> None:
        assert module.weight.grad is not None
        seen.append(module.weight.grad.flatten().double().numpy() * to_sum)

    outcome = trainer.run(note)
    if outcome.status != "finished":
        raise KeyboardInterrupt("stopped by a signal")
    return np.stack(seen, axis=1), coins


def ideal_run(law: SampledGaussian, rng: np.random.Generator) -> tuple[Floats, Coins]:
    """Readings and coins of exactly that law."""
    coins = rng.random(CANARIES) < 0.5
    drawn = rng.random((CANARIES, law.steps)) < law.sampling_rate
    noise = law.noise_multiplier * rng.standard_normal((CANARIES, law.steps))
    return (drawn & coins[:, None]) + noise, coins


def best_test(scores: Floats, coins: Coins, law: SampledGaussian) -> float:
    """Epsilon at the smallest noise that the most powerful test against the true noise rejects, given the scores.

    Coins are independent given scores, with log odds l' under the noise that is tested and l under the true one: the
    log-likelihood ratio of the coins is, but for what scores alone decide, the sum of l - l' over those that are in.
    """
    critical = -float(ndtri(1.0 - CONFIDENCE))

    def odds(power: int) -> Floats:
        return law.log_odds(scores, law.noise_multiplier * RATIO**power)

    def rejected(power: int) -> bool:
        tested = odds(power)
        weights = odds(min(0, power - 1)) - tested  # against the true noise, or against the next less, if that is less
        chance = expit(tested)
        spread = math.sqrt(float((chance * (1.0 - chance)) @ weights**2))
        return float(weights @ (coins - chance)) >= critical * spread

    if not rejected(MOST):
        return 0.0
    low, high = LEAST - 1, MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if rejected(middle) else (middle, high)
    return law.epsilon(DELTA, law.noise_multiplier * RATIO**high)


def shown(bounds: list[float]) -> str:
    """Mean (least, largest)."""
    return f"{np.mean(bounds):.2f} ({min(bounds):.2f}, {max(bounds):.2f})"


def main() -> int:
    """One row a mechanism."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--simulations", type=int, default=100)
    parser.add_argument("--only", help="one mechanism, as QxSTEPS")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| q | steps | sigma | epsilon | real: `optimal` | real: `gaussian` | ideal: `optimal` (standard error) "
        "| best test | Gaussian equivalent | share of ideal, best test, equivalent | CPU s |\n" + "|---" * 11 + "|"
    )
    for rate, steps in MECHANISMS:
        if given.only in (None, f"{rate:g}x{steps}"):
            print(row(rate, steps, given.runs, given.simulations), flush=True)
    return 0


def row(rate: float, steps: int, runs: int, simulations: int) -> str:
    """The figures of one mechanism."""
    start = time.process_time()
    config = settings(rate, steps)
    plan = compile_plan(config.privacy, CANARIES)
    assert plan.mechanism is not None
    law = SampledGaussian(plan.sampling_rate, plan.mechanism.noise_multiplier, steps)
    true = law.epsilon(DELTA, law.noise_multiplier)
    real, straight = [], []
    for _ in range(runs):
        seen, coins = real_run(config, plan)
        scores = law.scores(seen)
        real.append(optimal(scores, coins, DELTA, CONFIDENCE, law).epsilon)
        straight.append(gaussian(scores, coins, DELTA, CONFIDENCE).epsilon)
    rng = np.random.default_rng(20261123)
    ideal, best = [], []
    for _ in range(simulations):
        seen, coins = ideal_run(law, rng)
        scores = law.scores(seen)
        ideal.append(optimal(scores, coins, DELTA, CONFIDENCE, law).epsilon)
        best.append(best_test(scores, coins, law))
    equivalent = gaussian_epsilon(
        gaussian_mu(true, DELTA) + float(ndtri(1.0 - CONFIDENCE)) * 2.0 / math.sqrt(CANARIES), DELTA
    )
    error = np.std(ideal) / math.sqrt(simulations)
    shares = ", ".join(f"{np.mean(real) / goal:.1%}" for goal in (np.mean(ideal), np.mean(best), equivalent))
    return (
        f"| {rate:g} | {steps} | {law.noise_multiplier:.3f} | {true:.2f} | {shown(real)} | "
        f"{shown(straight) if rate == 1.0 else '-'} | {np.mean(ideal):.2f} ({error:.2f}) | {np.mean(best):.2f} | "
        f"{equivalent:.2f} | {shares} | {time.process_time() - start:.0f} |"
    )


if __name__ == "__main__":
    sys.exit(main())
