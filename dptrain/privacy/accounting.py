"""From an event to epsilon: dp-accounting's privacy loss distributions, rounded pessimistically.

An event is plain data, in a closed schema; anything else is refused, and no name in it is ever imported:

    {"type": "self_composed", "count": 100, "event":
        {"type": "poisson_sampled", "sampling_rate": 0.01, "event":
            {"type": "gaussian", "noise_multiplier": 1.0}}}
    {"type": "composed", "events": [...]}                                         all of them, on the same units
    {"type": "repeat_and_select", "event": ..., "trials": {"name": "poisson", "mean": 40.0}}
        the best of a secret number of runs, drawn from a law of ``privacy/selection.py``; priced by Renyi DP

Sources: Koskela et al. 2020 and Doroshenko et al. 2022 (discretised privacy loss distributions, "connect the
dots"); Mironov et al. 2019 (RDP of the sampled Gaussian), used as the second opinion.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dptrain.errors import ConfigError
from dptrain.privacy.selection import Trials, trials_from

if TYPE_CHECKING:
    import dp_accounting
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

Event = dict[str, Any]

FINE = 1e-4
"""Discretisation of privacy losses for every number that is reported; finer still for an epsilon below 0.2."""
COARSE = 1e-3
"""Discretisation for searching; what a search finds is checked at FINE."""


ARITHMETIC = 1e-15
"""Share of delta, a step, taken off before pricing: convolution by FFT rounds, and below some delta the result would be
too low. The largest error found against 50-digit arithmetic was 3e-17 a step (q = 1, 100,000 steps)."""


LARGEST_DEPTH = 8
LARGEST_SIZE = 10_000


def smallest_delta(count: int) -> float:
    """The smallest delta at which ``count`` steps can be priced."""
    return 100 * ARITHMETIC * max(count, 1) * 1.01


def gaussian(noise_multiplier: float) -> Event:
    """One Gaussian release; the multiplier is of the sensitivity."""
    return {"type": "gaussian", "noise_multiplier": noise_multiplier}


def poisson_sampled(sampling_rate: float, event: Event) -> Event:
    """An event on a Poisson sample of the units."""
    return {"type": "poisson_sampled", "sampling_rate": sampling_rate, "event": event}


def self_composed(count: int, event: Event) -> Event:
    """``count`` independent repetitions of an event."""
    return {"type": "self_composed", "count": count, "event": event}


def composed(events: Sequence[Event]) -> Event:
    """All of ``events`` on the same units. Nested compositions are spread out, and repetitions of one step joined."""
    groups: dict[str, tuple[Event, int]] = {}
    others: list[Event] = []
    for event in events:
        if has_selection(event):
            others.append(event)
            continue
        for step, count in parts(event):
            groups[str(step)] = (step, groups.get(str(step), (step, 0))[1] + count)
    joined = [self_composed(count, step) for step, count in groups.values()] + others
    return joined[0] if len(joined) == 1 else {"type": "composed", "events": joined}


def repeat_and_select(event: Event, trials: Trials) -> Event:
    """The best of K runs of ``event``, K drawn once from ``trials``; nothing else of them is released."""
    return {"type": "repeat_and_select", "event": event, "trials": trials.to_json()}


def has_selection(event: Event) -> bool:
    """Whether a selection is anywhere in it: such an event has a price in Renyi divergence only."""
    inner = event.get("events", [event["event"]] if "event" in event else [])
    return event.get("type") == "repeat_and_select" or any(has_selection(e) for e in inner)


def parts(event: Event) -> list[tuple[Event, int]]:
    """(step, repetitions) of an event without a selection; a step is a Gaussian, on a Poisson sample or on everyone."""
    if event["type"] == "composed":
        return [part for inner in event["events"] for part in parts(inner)]
    if event["type"] == "self_composed":
        return [(step, count * event["count"]) for step, count in parts(event["event"])]
    return [(event, 1)]


def kinds_of_steps(steps: Iterable[tuple[Event, int]]) -> dict[tuple[float, float], int]:
    """(sampling rate, noise multiplier) -> how many such steps; ``steps`` are pairs as ``parts`` gives them."""
    found: dict[tuple[float, float], int] = {}
    for step, count in steps:
        if count:
            kind = sampled_gaussian(step)
            found[kind] = found.get(kind, 0) + count
    return found


def method() -> dict[str, str]:
    """Which accountant computes the numbers, as the statement names it."""
    from importlib.metadata import version

    return {"method": "PLD", "library": "dp-accounting", "version": version("dp-accounting")}


def epsilon(event: Event, delta: float, adjacency: str = "zero_out", interval: float = FINE) -> float:
    """An upper bound on epsilon of an event at ``delta``.

    Guarantee: the mechanism that the event describes is (epsilon, delta)-DP under the adjacency; rounding
    of the privacy loss distribution is pessimistic.

    Args:
        event: in the closed schema above.
        delta: in (0, 1).
        adjacency: ``zero_out`` or ``add_remove``.
        interval: discretisation of the privacy loss.
    """
    return epsilons(event, [delta], adjacency, interval)[0]


def epsilons(event: Event, deltas: Sequence[float], adjacency: str = "zero_out", interval: float = FINE) -> list[float]:
    """``epsilon`` at several deltas for the price of one composition."""
    to_dp_event(event)
    if has_selection(event):
        return [rdp_epsilon(event, delta, adjacency) for delta in deltas]
    event = composed([event])
    if event["type"] == "composed":
        from dptrain.privacy.composition import compose_epsilon  # it stands on this module

        cell = None if interval == FINE else interval
        return [compose_epsilon(parts(event), delta, cell) for delta in deltas]
    count, step = _split(event)
    values = [_compose(step, count, delta, adjacency, interval) for delta in deltas]
    if interval == FINE and max(values) < 0.2:
        # Rounding by whole cells of 1e-4 over many steps weighs on a small epsilon: look closer.
        finer = max(max(values) * 1e-3, 1e-7)
        values = [min(v, _compose(step, count, d, adjacency, finer)) for v, d in zip(values, deltas, strict=True)]
    return values


def _compose(step: Event, count: int, delta: float, adjacency: str, interval: float) -> float:
    if count == 0:
        return 0.0
    reserve = ARITHMETIC * count
    if reserve > 0.01 * delta:
        raise ConfigError(
            "privacy.delta",
            f"{delta:g}",
            f"is too small for the accountant's arithmetic over {count} steps",
            f"use {smallest_delta(count):.1g} or more, or fewer steps",
        )
    rate, sigma = sampled_gaussian(step)
    return _price(rate, sigma, count, delta - reserve, adjacency, interval)


def epsilon_over_steps(
    step: Event, counts: Sequence[int], delta: float, adjacency: str = "zero_out", interval: float = FINE
) -> list[float]:
    """Epsilon after each number of steps in ``counts``, each as if the run had been planned to that length."""
    return [_compose(step, count, delta, adjacency, interval) for count in counts]


def rdp_epsilon(event: Event, delta: float, adjacency: str = "zero_out") -> float:
    """Epsilon by Renyi DP: looser, computed by other code; an upper bound that PLD must not exceed.

    The one price of a selection (Papernot & Steinke 2022, Theorems 2 and 6), turned into epsilon by Proposition 12 of
    Canonne, Kamath & Steinke 2020. The last factor pays for the rounding of float64 sums.
    """
    to_dp_event(event)
    return _rdp_epsilon(json.dumps(event), delta, adjacency)


@lru_cache(maxsize=256)
def _rdp_epsilon(text: str, delta: float, adjacency: str) -> float:
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(neighboring_relation=_relation(adjacency))
    log = logging.getLogger("absl")
    was, log.disabled = log.disabled, True  # an order whose series does not converge is left out, and that is all
    try:
        accountant.compose(to_dp_event(json.loads(text)))
    finally:
        log.disabled = was
    return float(accountant.get_epsilon(delta)) * (1.0 + 1e-12)


def to_dp_event(event: Event) -> dp_accounting.DpEvent:
    """The event as dp-accounting's own object.

    Raises:
        ConfigError: it is outside the closed schema: an unknown name or key, a value out of range, more than
            ``LARGEST_DEPTH`` levels or ``LARGEST_SIZE`` parts, or a selection under sampling or another selection.
    """
    _check_size(event)
    return _built(event)


def _check_size(event: Any) -> None:
    """Refuses what is too deep or too large to be priced in reasonable time; never recurses further than it allows."""
    level, size = [event], 0
    for _ in range(LARGEST_DEPTH):
        level = [inner for node in level if isinstance(node, dict) for inner in _inside(node)]
        size += len(level)
        if not level or size > LARGEST_SIZE:
            break
    if level:
        remedy = f"at most {LARGEST_SIZE} parts in {LARGEST_DEPTH} levels"
        raise ConfigError("event", str(event)[:80], "is too large an event", remedy)


def _inside(node: Event) -> list[Any]:
    several = node.get("events")
    return [node["event"]] if "event" in node else several if isinstance(several, list) else []


def _built(event: Any, outer: str = "") -> dp_accounting.DpEvent:
    import dp_accounting as dp
    from dp_accounting.dp_event import RepeatAndSelectDpEvent

    match event:
        case {"type": "gaussian", "noise_multiplier": float() | int() as sigma} if len(event) == 2 and sigma > 0:
            return dp.GaussianDpEvent(sigma)
        case {"type": "poisson_sampled", "sampling_rate": float() | int() as q, "event": dict() as inner} if (
            len(event) == 3 and 0 < q <= 1
        ):
            return dp.PoissonSampledDpEvent(q, _built(inner, "poisson_sampled"))
        case {"type": "self_composed", "count": int() as count, "event": dict() as inner} if (
            len(event) == 3 and count >= 0
        ):
            return dp.SelfComposedDpEvent(_built(inner, outer), count)
        case {"type": "composed", "events": [_, *_] as several} if len(event) == 2 and outer != "poisson_sampled":
            return dp.ComposedDpEvent([_built(inner, outer) for inner in several])
        case {"type": "repeat_and_select", "event": dict() as inner, "trials": dict() as law} if (
            len(event) == 3 and not outer
        ):
            trials = trials_from(law)
            return RepeatAndSelectDpEvent(_built(inner, "repeat_and_select"), trials.priced_mean, trials.shape)
        case _:
            raise ConfigError(
                "event", str(event)[:80], "is not an event that can be priced", "use the plan's own event"
            )


def _split(event: Event) -> tuple[int, Event]:
    to_dp_event(event)
    if event["type"] == "self_composed":
        return event["count"], event["event"]
    return 1, event


def sampled_gaussian(step: Event) -> tuple[float, float]:
    """(sampling rate, noise multiplier) of a step: a Gaussian, on a Poisson sample or on everyone (rate 1)."""
    to_dp_event(step)
    rate, inner = (step["sampling_rate"], step["event"]) if step["type"] == "poisson_sampled" else (1.0, step)
    if inner["type"] != "gaussian" or not math.isfinite(inner["noise_multiplier"]):
        raise ConfigError("event", str(step)[:80], "is not a step that can be priced", "use the plan's own event")
    return rate, inner["noise_multiplier"]


@lru_cache(maxsize=4)
def _step_distribution(rate: float, sigma: float, adjacency: str, interval: float) -> PrivacyLossDistribution:
    from dp_accounting.pld import privacy_loss_distribution as pld

    return pld.from_gaussian_mechanism(
        sigma,
        value_discretization_interval=interval,
        sampling_prob=rate,
        neighboring_relation=_relation(adjacency),
    )


@lru_cache(maxsize=4096)  # numbers only: the jobs of a sweep, and a plan asked twice, pay once
def _price(rate: float, sigma: float, count: int, delta: float, adjacency: str, interval: float) -> float:
    return max(0.0, float(_composed(rate, sigma, count, adjacency, interval).get_epsilon_for_delta(delta)))


@lru_cache(maxsize=2)
def _composed(rate: float, sigma: float, count: int, adjacency: str, interval: float) -> PrivacyLossDistribution:
    return _step_distribution(rate, sigma, adjacency, interval).self_compose(count)


def _relation(adjacency: str) -> dp_accounting.NeighboringRelation:
    import dp_accounting as dp

    relations = {
        "zero_out": dp.NeighboringRelation.REPLACE_SPECIAL,
        "add_remove": dp.NeighboringRelation.ADD_OR_REMOVE_ONE,
    }
    return relations[adjacency]
