"""How batch, steps and noise share one epsilon: what each choice leaves of the signal, and which is the best buy.

Two facts carry it. At a given (epsilon, delta) the whole run has at most the signal-to-noise ratio of one Gaussian
release of everybody's sum, mu N; sampling small batches with little noise (below about 2 sensitivities: the "privacy
wall" of Sander, Stock & Sablayrolles 2023, "TAN without a burn") wastes a part of that, and more steps divide what is
left. And noisy gradient descent on a smooth convex loss ends within

    R C (n + kappa / T),   n^2 = D (1 + s)^2 sigma^2 / (B^2 T) + (1 - q) / (B T)

of the optimum at distance R (Bubeck 2015, Theorem 6.3, with the variance of a step's noisy mean of D coordinates, and
kappa = beta R / 2C for a loss that is beta-smooth). N samples do not tell the optimum of the population to within less
than about R C / sqrt(N), with or without privacy (Bassily, Feldman, Talwar & Thakurta 2019, "Private stochastic convex
optimization with optimal rates"), so that is what the rest is added to. All of it is public: N, D, epsilon, and no row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dptrain.errors import ConfigError
from dptrain.privacy import accounting
from dptrain.privacy.accounting import Event

STEPS = tuple(round(31.25 * 2**k) for k in range(10))
"""Numbers of steps that are weighed up where none are named: 31 to 16,000."""
SMALLEST_BATCH, MOST_BATCHES = 16, 14
ENOUGH = 20
"""Times the fewest steps that a row must have to be preferred to longer ones below the privacy wall."""
NORMALISING = ("adam", "adamw", "nadam", "radam", "adamax", "rmsprop")
"""Optimizers that divide a gradient by its own size, coordinate by coordinate."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be trained, and what it may cost in privacy. Public facts all."""

    public_size: int
    """N, units."""
    num_parameters: int
    """D, numbers that are trained."""
    epsilon: float
    delta: float
    """What is left of delta for the mechanism."""
    adjacency: str
    sensitivity_slack: float
    """s: the noise follows C (1 + s)."""
    fewest_steps: float
    """kappa: steps that training without noise needs at least."""
    whole: Callable[[Event], Event]
    """Event of the steps -> event of the run (noisy looks beside it, a search around it)."""

    @property
    def ideal(self) -> float:
        """Signal-to-noise ratio of one release of the sum over all units at this epsilon: mu N, in sensitivities."""
        return gaussian_mu(self.epsilon, self.delta) * self.public_size

    @property
    def sample_term(self) -> float:
        """What N samples leave open, whatever is done with them."""
        return 1 / math.sqrt(self.public_size)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One choice of batch and steps, with the noise that it needs."""

    batch: float
    """B, expected units in a draw."""
    steps: int
    """T."""
    noise_multiplier: float
    """sigma, in sensitivities."""
    epsilon: float | None = None
    """Of this row, by the exact accountant; None where the noise is an estimate."""

    def rate(self, question: Question) -> float:
        """q."""
        return min(1.0, self.batch / question.public_size)

    @property
    def gradients(self) -> float:
        """Expected unit gradients of the run."""
        return self.batch * self.steps

    @property
    def signal(self) -> float:
        """B sqrt(T) / sigma: signal-to-noise ratio of the whole run, were all gradients the same.

        N sqrt(2) times the eta of Sander et al. 2023, section 3, whose effective noise a step is sigma / B.
        """
        return self.batch * math.sqrt(self.steps) / self.noise_multiplier

    def kept(self, question: Question) -> float:
        """Share of the ideal signal that sampling leaves."""
        return self.signal / question.ideal

    def noise_term(self, question: Question) -> float:
        """n of the bound: what noise and sampling cost."""
        noise = question.num_parameters * ((1 + question.sensitivity_slack) / self.signal) ** 2
        return math.sqrt(noise + (1 - self.rate(question)) / self.gradients)

    def steps_term(self, question: Question) -> float:
        """kappa / T of the bound: what too few steps cost."""
        return question.fewest_steps / self.steps

    def bound(self, question: Question) -> float:
        """1 / sqrt(N) + n + kappa / T: distance from the optimum, in units of R C; to compare rows by."""
        return question.sample_term + self.noise_term(question) + self.steps_term(question)


def gaussian_mu(epsilon: float, delta: float) -> float:
    """Largest mu for which a Gaussian release of signal-to-noise ratio mu is (epsilon, delta)-DP.

    Balle & Wang 2018, Theorem 8: delta = F(mu/2 - epsilon/mu) - e^epsilon F(-mu/2 - epsilon/mu).
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    def excess(log_mu: float) -> float:
        mu = math.exp(log_mu)
        first = float(norm.logcdf(mu / 2 - epsilon / mu))
        second = epsilon + float(norm.logcdf(-mu / 2 - epsilon / mu))
        gap = -math.expm1(second - first) if second < first else 0.0
        return first + math.log(max(gap, 1e-300)) - math.log(delta)

    root: float = brentq(excess, math.log(1e-6), math.log(1e4), xtol=1e-9)  # pyright: ignore[reportAssignmentType]
    return math.exp(root)


def likely_noise(mu: float, rate: float, steps: int) -> float:
    """Noise multiplier of ``steps`` draws at ``rate`` that together are about as private as mu says.

    The central limit theorem mu = q sqrt(T (e^(1/sigma^2) - 1)) of Bu, Dong, Long & Su 2020 ("Deep learning with
    Gaussian differential privacy"); exact at q = 1. An estimate, for ranking: it may be too low.
    """
    if rate >= 1:
        return math.sqrt(steps) / mu
    return 1 / math.sqrt(math.log1p((mu / rate) ** 2 / steps))


def likely_mu(row: Row, question: Question) -> float:
    """The inverse of ``likely_noise``."""
    rate, sigma = row.rate(question), row.noise_multiplier
    if rate >= 1:
        return math.sqrt(row.steps) / sigma
    return rate * math.sqrt(row.steps * math.expm1(min(sigma**-2, 700.0)))


def grid(question: Question, batches: Sequence[float], steps: Sequence[int], mu: float) -> list[Row]:
    """Every batch with every number of steps, its noise estimated.

    Args:
        batches: expected batches; empty: N, N/2, N/4, ... down to 16.
        steps: numbers of steps; empty: ``STEPS``.
        mu: of the steps alone, as ``gaussian_mu`` gives it or the configured plan.
    """
    size = question.public_size
    if not batches:
        halves = [size / 2**k for k in range(MOST_BATCHES) if size / 2**k >= SMALLEST_BATCH]
        batches = sorted({float(max(1, round(half))) for half in halves or [size]})
    rows = []
    for batch in sorted({min(float(b), float(size)) for b in batches}):
        for count in sorted(set(steps or STEPS)):
            rows.append(Row(batch=batch, steps=count, noise_multiplier=likely_noise(mu, batch / size, count)))
    return rows


def priced(row: Row, question: Question) -> Row:
    """The row with the noise that the exact accountant asks for, to three digits rounded up, and its epsilon.

    Guarantee: at that noise the run's steps are (epsilon, delta)-DP with ``row.epsilon <= question.epsilon``.

    Raises:
        ConfigError: no noise multiplier up to 10,000 is enough.
    """
    coarse = min(accounting.COARSE, question.epsilon / 1000)
    step_rate = row.rate(question)

    def price(sigma: float) -> float:
        step = accounting.poisson_sampled(step_rate, accounting.gaussian(sigma))
        event = question.whole(accounting.self_composed(row.steps, step))
        return max(accounting.epsilon(event, question.delta, question.adjacency, coarse), 1e-9)

    # Near a guess log epsilon falls linearly with log sigma, with a slope of -1 or steeper: two or three prices do.
    sigma = max(row.noise_multiplier, 0.2)
    value, slope = price(sigma), -1.0
    for _ in range(8):
        if abs(math.log(value / question.epsilon)) < 0.002:
            break
        following = sigma * math.exp(max(-1.0, min(1.0, math.log(question.epsilon / value) / slope)))
        then = price(following)
        slope = min(-0.5, math.log(then / value) / math.log(following / sigma))
        sigma, value = following, then
    unit = 10.0 ** (math.floor(math.log10(sigma)) - 2)
    ticks = math.ceil(sigma / unit)
    while (found := price(ticks * unit)) > question.epsilon:
        ticks += 1
        if ticks * unit > 1e4:
            problem = f"cannot be met in {row.steps} steps with any noise multiplier up to 10,000"
            raise ConfigError("privacy.epsilon", question.epsilon, problem, "raise epsilon or delta")
    return replace(row, noise_multiplier=float(f"{ticks * unit:.6g}"), epsilon=found)


def above_the_wall(rows: Sequence[Row], question: Question, least_kept: float) -> list[Row]:
    """The rows that keep at least that share of the signal; all of them where those that do are all too short: below
    ``ENOUGH`` times the fewest steps, while others are longer.

    What sampling wastes no length of training gets back, while the term of steps rests on a guess of kappa.
    """
    above = [row for row in rows if row.kept(question) >= least_kept]
    longest = max(row.steps for row in rows)
    if not above or max(row.steps for row in above) < min(ENOUGH * question.fewest_steps, longest):
        return list(rows)
    return above


def frontier(rows: Sequence[Row], question: Question, cost: Callable[[Row], float]) -> list[Row]:
    """Rows that no cheaper row beats, cheapest first."""
    kept: list[Row] = []
    for row in sorted(rows, key=lambda r: (cost(r), r.bound(question))):
        if not kept or row.bound(question) < kept[-1].bound(question):
            kept.append(row)
    return kept


def best_buy(rows: Sequence[Row], question: Question, cost: Callable[[Row], float], tolerance: float) -> Row:
    """The cheapest row whose bound is within ``tolerance`` of the lowest."""
    lowest = min(row.bound(question) for row in rows)
    return min((row for row in rows if row.bound(question) <= (1 + tolerance) * lowest), key=cost)


def telling(rows: Sequence[Row], keep: Row, question: Question) -> list[Row]:
    """Rows of a frontier without those whose bound is hardly (1 %) below that of the one before; ``keep`` stays."""
    kept: list[Row] = []
    for row in rows:
        if row is keep or not kept or row.bound(question) < 0.99 * kept[-1].bound(question):
            kept.append(row)
    return kept


def thinned(rows: Sequence[Row], keep: Row, most: int) -> list[Row]:
    """At most ``most`` of the rows, evenly spread, with the first, the last, and ``keep`` among them."""
    if len(rows) <= most:
        return list(rows)
    place = rows.index(keep)
    chosen = {round(k * (len(rows) - 1) / (most - 1)) for k in range(most)}
    if place not in chosen:
        chosen.remove(min(chosen - {0, len(rows) - 1} or chosen, key=lambda other: abs(other - place)))
        chosen.add(place)
    return [rows[k] for k in sorted(chosen)]


def scaled_rate(lr: float, optimizer: str, before: Row, after: Row, question: Question) -> float | None:
    """The learning rate moved from one row to another, to two digits; None for optimizers that no rule is known for.

    Plain gradient descent: the rate of the bound is 1 / (beta + C T n / R) (Bubeck 2015, Theorem 6.3), so between
    1 / (T n), where noise sets it, and 1 / (2 kappa + T n); of the two moves the one to the smaller rate is made, since
    which of the two terms the given rate stands for is not known. Where an optimizer divides by the size of its
    gradients, that times their size, sqrt(1 + T n^2), which noise makes.
    """

    def of(row: Row, curvature: float) -> float:
        noise = row.noise_term(question)
        size = math.sqrt(1 + row.steps * noise**2) if optimizer in NORMALISING else 1.0
        return size / (curvature + row.steps * noise)

    if optimizer not in (*NORMALISING, "sgd"):
        return None
    moves = [of(after, curvature) / of(before, curvature) for curvature in (0.0, 2 * question.fewest_steps)]
    return float(f"{lr * min(moves):.2g}")
