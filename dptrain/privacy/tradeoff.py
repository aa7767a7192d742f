"""What a mechanism leaves any test of one unit's presence: its privacy profile, and what is read off it.

The profile is ``delta(epsilon)``, the hockey-stick divergence, for every epsilon >= 0 at once. Here it is bounded from
above twice, by the privacy loss distribution (rounded pessimistically, with the share for arithmetic added) and by
Renyi DP (which reaches deltas far below what an FFT can), and the smaller counts. Everything else follows from it:

    trade-off curve   f(a) >= max over epsilon of max(0, 1 - delta - e^epsilon a, e^-epsilon (1 - delta - a))
    advantage         TPR - FPR of any test <= delta(0), the total variation
    best guess        at prior p <= 1/2 of membership: right at most 1 - p (1 - delta(log((1-p)/p)))
    groups of k       (k e, d (e^(k e) - 1) / (e^e - 1)) for every (e, d) on the profile

Sources: Dong, Roth & Su 2022, Propositions 4 and 6 (f from a profile); Kairouz, Oh & Viswanath 2015 (advantage);
Dwork & Roth 2014, Lemma 2.2 and Vadhan 2017, Lemma 2.2 (groups, by the triangle inequality, k times); Canonne, Kamath
& Steinke 2020, Proposition 12 (delta from Renyi divergence).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from dptrain.errors import ConfigError
from dptrain.privacy import accounting
from dptrain.privacy.accounting import Event
from dptrain.privacy.privacy_filter import UNIT, Rule, step_price, steps_of

SAMPLER_DISTANCE = 1e-18
"""Total variation between the noise drawn and ideal noise, for up to 10^12 released numbers (docs/noise.md)."""
LARGEST_READ = 12.0
"""Profiles are read up to this epsilon for curves: what lies beyond moves no point of a curve by 1e-5."""
READINGS = 60
ORDERS = (1.25, 1.5, 1.75, *range(2, 17), *range(18, 33, 2), *range(36, 65, 4), 80, 96, 128, 192, 256, 384, 512, 1024)
ALPHAS = (0.0, 1e-4, 3e-4, 0.001, 0.003, 0.01, 0.02, 0.03, *(k / 20 for k in range(1, 20)), 0.97, 0.99, 1.0)
"""Rates of false alarms at which a statement gives the curve."""


class Profile:
    """``delta(epsilon)`` of one event, from above.

    Guarantee: for every epsilon >= 0 the mechanism that the event describes, run with noise within ``SAMPLER_DISTANCE``
    of ideal, is (epsilon, deltas([epsilon])[0])-DP under the adjacency.

    Args:
        event: in the closed schema of ``accounting``.
        adjacency: ``zero_out`` or ``add_remove``.
        interval: discretisation of the privacy loss; None for Renyi DP alone.
        reserve: what is added to every delta for the rounding of Fourier transforms, in ``ARITHMETIC`` a step. The
            guarantee needs 1; other values tell what another machine's rounding may have made of the same profile.

    Raises:
        ConfigError: the event cannot be priced.
    """

    def __init__(self, event: Event, adjacency: str, interval: float | None, reserve: float = 1.0) -> None:
        self.event, self.adjacency, self.interval = event, adjacency, interval
        self.count, self._step = steps_of(event)
        self._reserve = reserve * accounting.ARITHMETIC * self.count

    @cached_property
    def _divergences(self) -> list[tuple[float, float]]:
        """(order, Renyi divergence of the whole), rounded up."""
        prices = step_price(self._step, [float(order) for order in ORDERS])
        return [(float(a), self.count * price * UNIT) for a, price in zip(ORDERS, prices, strict=True)]

    @cached_property
    def _losses(self) -> Any:
        if self.interval is None:
            return None
        try:
            rate, sigma = accounting.sampled_gaussian(self._step)
        except ConfigError:
            return None  # a choice among trials has a price in Renyi DP only
        return accounting._composed(rate, sigma, self.count, self.adjacency, self.interval)

    def renyi_epsilon(self, delta: float) -> float:
        """Epsilon at ``delta`` by Renyi DP alone: an upper bound by other code than the loss distribution's."""
        if self.count == 0:
            return 0.0
        return max(0.0, min(total + Rule(order, delta).offset for order, total in self._divergences))

    def renyi_delta(self, epsilon: float) -> float:
        """Delta at ``epsilon`` by Renyi DP alone."""
        if self.count == 0:
            return 0.0
        logs = [(a - 1) * (r - epsilon + math.log1p(-1 / a)) - math.log(a) for a, r in self._divergences]
        return math.exp(min(0.0, *logs))

    def epsilon(self, delta: float) -> float:
        """Epsilon at ``delta`` by the loss distribution where there is one, else by Renyi DP; for ideal noise.

        The share of delta for arithmetic is taken off.
        """
        if self.count == 0:
            return 0.0
        if self._losses is None:
            return self.renyi_epsilon(delta)
        return max(0.0, float(self._losses.get_epsilon_for_delta(delta - self._reserve)))

    def ideal_deltas(self, epsilons: Sequence[float]) -> list[float]:
        """Delta at each epsilon if the noise were ideal."""
        if self.count == 0:
            return [0.0 for _ in epsilons]
        renyi = [self.renyi_delta(e) for e in epsilons]
        if self._losses is None:
            return renyi
        ways = [_hockey_sticks(pmf, epsilons) for pmf in {self._losses._pmf_remove, self._losses._pmf_add}]
        return [min(1.0, r, max(0.0, *d) + self._reserve) for r, *d in zip(renyi, *ways, strict=True)]

    def deltas(self, epsilons: Sequence[float]) -> list[float]:
        """Delta at each epsilon, with the noise as it is drawn."""
        ideal = self.ideal_deltas(epsilons)
        return [min(1.0, d + (1.0 + math.exp(e)) * SAMPLER_DISTANCE) for d, e in zip(ideal, epsilons, strict=True)]


def _hockey_sticks(pmf: Any, epsilons: Sequence[float]) -> list[float]:
    """Sum over losses above epsilon of ``p (1 - e^(epsilon - loss))``, and the infinite loss; from the far end on."""
    import numpy as np

    dense = pmf.to_dense_pmf()
    first = max(0, -dense._lower_loss)  # losses below 0 lie below every epsilon
    probabilities = np.asarray(dense._probs)[first:]
    losses = (np.arange(first, first + len(probabilities)) + dense._lower_loss) * dense._discretization
    mass = np.append(np.cumsum(probabilities[::-1])[::-1], 0.0)
    shrunk = np.append(np.cumsum((probabilities * np.exp(-losses))[::-1])[::-1], 0.0)
    places = np.searchsorted(losses, np.asarray(epsilons, dtype=float), side="right")
    finite = mass[places] - np.exp(np.asarray(epsilons, dtype=float)) * shrunk[places]
    return [float(dense._infinity_mass + max(0.0, value)) for value in finite]


Pairs = Sequence[tuple[float, float]]
"""(epsilon, delta), all of them kept by one mechanism."""


def readings(profile: Profile, epsilon: float) -> list[tuple[float, float]]:
    """(epsilon, delta) at 0 and evenly up to three times the given epsilon, at most ``LARGEST_READ``."""
    top = min(LARGEST_READ, max(3.0 * epsilon, 0.03))
    at = [top * i / READINGS for i in range(READINGS + 1)]
    return list(zip(at, profile.deltas(at), strict=True))


def missed(pairs: Pairs, alpha: float) -> float:
    """f(alpha): the least share of members that any test misses at this rate of false alarms.

    >>> missed([(0.0, 0.25)], 0.5)
    0.25
    """
    best = 0.0
    for epsilon, delta in pairs:
        accused = math.exp(min(epsilon + math.log(alpha), 1.0)) if alpha > 0.0 else 0.0  # past 1 all members are
        best = max(best, 1.0 - delta - accused, math.exp(-epsilon) * (1.0 - delta - alpha))
    return best


def best_guess(delta: float, prior: float) -> float:
    """How often any guess can be right, at prior <= 1/2 and the profile's delta at ``log((1 - prior) / prior)``."""
    return 1.0 - prior * (1.0 - delta)


def group_epsilon(profile: Profile, delta: float, k: int, start: float) -> float | None:
    """The least epsilon found at which a group of k units is (epsilon, delta)-DP; None where none below 100 is.

    Guarantee: for data sets that differ in at most k units the mechanism is (returned, delta)-DP. If P and Q are k
    steps apart, each step (e, d)-DP, then ``P(S) <= e^(k e) Q(S) + d (1 + e^e + ... + e^((k-1) e))``; the noise's
    distance from ideal is added once, for the whole group.

    Args:
        start: a first guess at the epsilon of one unit; the search covers 1/4 to 40 times of it, at most 100 / k.
    """
    top = min(100.0 / k, max(40.0 * start, 0.05))
    low = min(start / 4.0, top / 2.0)
    for _ in range(2):  # once over the whole range, once between the two neighbours found
        at = [low + (top - low) * i / 100 for i in range(101)]
        deltas = profile.ideal_deltas(at)
        kept = [i for i, (e, d) in enumerate(zip(at, deltas, strict=True)) if _group_delta(e, d, k) <= delta]
        if not kept:
            return None
        low, top = at[max(kept[0] - 1, 0)], at[kept[0]]
    return k * top


def _group_delta(e: float, d: float, k: int) -> float:
    """Delta of k units at epsilon ``k e``, from (e, d) of one unit."""
    ladder = k if e == 0 else math.expm1(k * e) / math.expm1(e)
    return d * ladder + (1.0 + math.exp(k * e)) * SAMPLER_DISTANCE


def gaussian_mu(points: Pairs) -> float:
    """The least mu whose Gaussian curve ``Phi(Phi^-1(1 - a) - mu)`` lies on or below every point (alpha, beta).

    Points where either error is 0 or 1 say nothing about mu and are left out.
    """
    from scipy.stats import norm

    inner = [(a, b) for a, b in points if 0.0 < a < 1.0 and 0.0 < b < 1.0]
    return max((max(0.0, float(norm.isf(a) - norm.ppf(b))) for a, b in inner), default=0.0)
