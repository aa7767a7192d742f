"""The guarantee block of a statement: every number that a promise can be read as, from its terms alone."""

from __future__ import annotations

import math
from typing import Any

from dptrain.privacy import accounting, tradeoff
from dptrain.privacy.accounting import Event
from dptrain.privacy.terms import Terms
from dptrain.privacy.tradeoff import Profile

FALSE_ALARMS = (0.001, 0.01, 0.05, 0.1)
PRIORS = (0.5, 0.1, 0.01)
GROUPS = (2, 5, 10)
GROUP_RULE = (
    "k times the triangle inequality: (k e, d (e^(k e) - 1) / (e^e - 1)) for every (e, d) that the mechanism keeps; "
    "the least k e at the stated delta. null: this rule finds no epsilon below 100"
)
MU_BOUND = "bound: a Gaussian mechanism on everyone, mu = sqrt(steps) / noise multiplier"
MU_FIT = (
    "approximation, not a bound: the least mu whose Gaussian curve lies on or below the stated points; a subsampled "
    "mechanism has heavier tails than any Gaussian curve"
)
CURVE_OF = {
    "planned": "the planned run, all steps",
    "stopped_early": "the planned run, all steps: it holds for this run too, whenever and why ever it stopped",
}


def interval_for(event: Event, epsilon: float, delta: float) -> float | None:
    """Discretisation at which an epsilon of this size is stated for this event; the rule of ``accounting.epsilons``.

    None for a choice among trials, whose price has no discretisation.

    Args:
        event: priced whole.
        epsilon: what it was priced at; a small one has a finer grid.
        delta: at which; matters where several kinds of steps are composed.
    """
    if accounting.has_selection(event):
        return None
    groups = accounting.kinds_of_steps(accounting.parts(event))
    if len(groups) > 1:
        from dptrain.privacy.composition import interval_of

        return interval_of(groups, delta)
    return accounting.FINE if epsilon >= 0.2 else min(accounting.FINE, max(epsilon * 1e-3, 1e-7))


def guarantee_block(
    terms: Terms, *, epsilon: float, planned: float, epsilon_at: list[dict[str, float]], interval: float | None
) -> dict[str, Any]:
    """The block.

    Guarantee: every number is a bound in the direction that protects: curve points from below; epsilons, advantage,
    rates, guesses and groups from above. ``gaussian`` says itself whether it is a bound. All but ``epsilon`` are of the
    whole planned run, of which a run that stopped early is post-processing.

    Args:
        terms: of the promise.
        epsilon: what is claimed at ``terms.delta``.
        planned: epsilon of the plan at ``terms.delta``.
        epsilon_at: the plan at several deltas; empty where the claim is not the plan's.
        interval: discretisation of the privacy loss; None for Renyi DP alone.
    """
    profile = Profile(terms.mechanism.event(), terms.adjacency, interval)
    pairs = [*tradeoff.readings(profile, planned), (planned, terms.delta)]
    at_priors = profile.deltas([math.log((1 - prior) / prior) for prior in PRIORS])
    points = [(alpha, tradeoff.missed(pairs, alpha)) for alpha in tradeoff.ALPHAS]
    groups = [{"k": k, "epsilon": tradeoff.group_epsilon(profile, terms.priced_delta, k, planned)} for k in GROUPS]
    return {
        "epsilon": epsilon,
        "delta": terms.delta,
        "claim": terms.claim,
        "epsilon_planned": planned,
        "epsilon_at": epsilon_at,
        "curve_of": CURVE_OF[terms.claim],
        "tradeoff": [{"alpha": alpha, "beta": beta} for alpha, beta in points],
        "advantage": pairs[0][1],
        "tpr_at_fpr": [{"fpr": rate, "tpr": 1.0 - tradeoff.missed(pairs, rate)} for rate in FALSE_ALARMS],
        "best_guess": [
            {"prior": prior, "right": tradeoff.best_guess(d, prior)} for prior, d in zip(PRIORS, at_priors, strict=True)
        ],
        "gaussian": _gaussian(terms, points),
        "groups": {"rule": GROUP_RULE, "delta": terms.delta, "epsilon": [{"k": 1, "epsilon": planned}, *groups]},
        "delta_rationale": delta_rationale(terms),
    }


def delta_rationale(terms: Terms) -> dict[str, Any]:
    """Delta beside the declared number of units: what it would mean at worst."""
    expected = terms.public_size * terms.delta
    warning = ", which is not well below 1" if expected > 0.1 else ""
    return {
        "public_size": terms.public_size,
        "units_times_delta": expected,
        "text": f"delta times the declared number of {terms.unit}s is {expected:.3g}: a mechanism that publishes each "
        f"{terms.unit} outright with probability delta would publish that many on average{warning}",
    }


def _gaussian(terms: Terms, points: list[tuple[float, float]]) -> dict[str, Any]:
    mechanism = terms.mechanism
    if mechanism.sampling_rate == 1.0 and not mechanism.beside and mechanism.trials is None:
        return {"mu": math.sqrt(mechanism.steps) / mechanism.noise_multiplier, "kind": MU_BOUND}
    return {"mu": tradeoff.gaussian_mu(points), "kind": MU_FIT}
