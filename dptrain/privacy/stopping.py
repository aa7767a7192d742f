"""What a run may claim when it stops before its planned end.

A run that ends as planned claims the epsilon that was planned. A run that stops early may claim less, but
the moment of stopping may have been chosen by someone who watched the model, so the claim must hold for every
such choice at once. The plan therefore fixes a ladder of rungs (every twentieth of the planned steps) before
the first step, and each rung is priced with its own share of delta:

    stopped after t steps, T_j the first rung with T_j >= t:  epsilon_j = epsilon(T_j steps, delta / 20)

Guarantee (ex-post, for every stopping rule that looks only at what was released or not at the data at all):
let J be the rung at which the run stops. For neighbouring data with output laws P, Q and every event S,
``P(S) <= sum_j [e^(epsilon_j) Q(S and J=j) + delta/20] = E_Q[e^(epsilon_J); S] + delta``. Each term holds because
{J = j} and the truncated transcript are a function of the first T_j releases, a composition of fixed, non-adaptive
parameters that is (epsilon_j, delta/20)-DP. The planned epsilon at delta holds as well, for the whole procedure
whatever its stopping rule, since a truncated transcript is post-processing of the full one. Both are true of the
run; the smaller is the one stated. Of a choice among trials only the planned epsilon holds: which trial is chosen may
rest on steps that others took after this one had stopped. (Whoever reads "the stated number as a function of when the
run stopped" as one ex-post guarantee of its own must add the two failure probabilities: its delta is at most twice the
stated one.)
Sources: Ligett et al. 2017 (ex-post privacy, definition 2.3); Rogers et al. 2016 (odometers).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from dptrain.privacy import accounting
from dptrain.privacy.accounting import Event
from dptrain.privacy.mechanism import DPSGD

RUNGS = 20


def rung(steps_done: int, planned_steps: int) -> int:
    """The number of steps of the first rung at or above ``steps_done``."""
    if not 0 <= steps_done <= planned_steps:
        raise ValueError(f"steps_done={steps_done} is not in [0, {planned_steps}]")
    for j in range(RUNGS + 1):
        steps = math.ceil(planned_steps * j / RUNGS)
        if steps >= steps_done:
            return steps
    return planned_steps


def epsilon_when_stopped(
    mechanism: DPSGD,
    steps_done: int,
    delta: float,
    adjacency: str,
    planned: float,
    priced: Callable[[Event, float], float] | None = None,
) -> float:
    """Epsilon that a run may claim after ``steps_done`` of its planned steps; see the module's guarantee.

    Args:
        planned: epsilon of the whole plan at ``delta``.
        priced: epsilon of an event at a delta; None for ``accounting.epsilon``.
    """
    if steps_done >= mechanism.steps or mechanism.trials is not None:
        return planned
    if steps_done == 0 and not mechanism.beside:
        return 0.0
    steps = rung(steps_done, mechanism.steps)
    if delta / RUNGS < accounting.smallest_delta(steps):
        return planned
    event, share = mechanism.event(steps), delta / RUNGS
    return min(planned, priced(event, share) if priced else accounting.epsilon(event, share, adjacency))
