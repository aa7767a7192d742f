"""The privacy statement: what a checkpoint promises, as JSON and as one sentence.

It holds public facts only. Anything computed from private rows stays out, and anyone with dp-accounting can
recompute epsilon from ``mechanism.event`` and ``guarantee.delta``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from dptrain.privacy import accounting
from dptrain.privacy.plan import NOISE_RESERVE, Plan

SCHEMA = "dptrain.statement/1"

ADJACENCY = {
    "zero_out": "one {unit}'s contribution replaced by nothing, the number of {unit}s being public",
    "add_remove": "one {unit} added or removed, the number of {unit}s not being public",
}
NOISE = {
    "secure": "AES-256 counter-mode keystream keyed by the operating system; rounded Gaussian on an integer grid",
    "fast": "torch's pseudo-random generator, not cryptographic, seeded by the operating system; floating-point sums; "
    "no bound on its distance from a Gaussian is known, and the bits of an output can betray a unit",
}
COUPLING = 5e-8
"""Most that one other unit in a physical batch was measured to move a unit's float32 contribution, as a share of C
(docs/results/engine_exactness.md)."""
NOT_COVERED = [
    "rows of the split declared public, and anything published about them",
    "facts about groups: the model may reveal what holds for the population whether or not a unit took part",
    "the choice of settings, where earlier runs on the same private rows informed it",
    "other runs on the same units: their epsilons add up",
    "timing, memory and other side channels of the machine that trained",
]


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What the statement needs to know of a run beside its plan. Public facts only."""

    run_id: str
    steps_done: int
    engine: str
    float_class: str
    data: dict[str, Any]
    """name, licence, public_size, public_split."""
    test_randomness: bool = False
    """Draws and noise came from a test key: the run promises nothing."""
    nonprivate_metrics: list[str] = field(default_factory=list)
    composition: dict[str, Any] | None = None
    """What the data set's account bears beside this run; None where no ledger was kept."""
    tuning: dict[str, Any] | None = None
    """How settings were chosen, and what that cost; None where nothing was tried."""
    audit: dict[str, Any] | None = None
    """What an audit found, where its user chose to publish it."""


def make_statement(plan: Plan, facts: RunFacts) -> dict[str, Any]:
    """The statement of a finished or stopped run.

    Guarantee: its epsilon is that of the plan when the run took all planned steps, else the smaller of that and
    the early-stop price (``privacy/stopping.py``); never that of fewer steps than were executed.
    """
    head = {
        "schema": SCHEMA,
        "run_id": facts.run_id,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "private": plan.is_private and not facts.test_randomness,
        "unit": {"kind": plan.unit, "max_rows": plan.max_rows_per_unit},
        "adjacency": plan.adjacency,
        "data": facts.data,
        "nonprivate_metrics": facts.nonprivate_metrics,
    }
    if plan.mechanism is None or facts.test_randomness:
        why = "draws and noise came from a test key" if facts.test_randomness else "trained without privacy"
        return head | {
            "sentence": f"This model promises no privacy: it was {why}."
            if plan.mechanism is None
            else f"This model promises no privacy: {why}.",
            "guarantee": None,
            "sampling": {"steps_planned": plan.steps, "steps_done": facts.steps_done},
            "not_covered": ["everything: no differential privacy is claimed"],
        }
    epsilon = plan.epsilon_after(facts.steps_done)
    assert epsilon is not None
    stopped = facts.steps_done < plan.steps
    return head | {
        "sentence": sentence(plan, epsilon, facts),
        "guarantee": {
            "epsilon": epsilon,
            "delta": plan.delta,
            "claim": "stopped_early" if stopped else "planned",
            "epsilon_at": [] if stopped else plan.epsilon_at(),
            "units_times_delta": plan.public_size * plan.delta,
        },
        "mechanism": {
            "name": plan.mechanism.name,
            "noise_multiplier": plan.mechanism.noise_multiplier,
            "clipping_norm": plan.mechanism.clipping_norm,
            "sensitivity": plan.mechanism.sensitivity,
            "engine": facts.engine,
            "float_class": facts.float_class,
            "event": plan.mechanism.event(facts.steps_done),
            "planned_event": plan.mechanism.event(),
        },
        "sampling": {
            "name": plan.mechanism.sampler,
            "rate": plan.sampling_rate,
            "expected_batch_size": plan.expected_batch_size,
            "steps_planned": plan.steps,
            "steps_done": facts.steps_done,
        },
        "randomness": {"noise": plan.noise, "source": NOISE[plan.noise], "delta_reserved": plan.delta * NOISE_RESERVE},
        "accounting": accounting.method() | {"rounding": "pessimistic", "check": "RDP, an upper bound"},
        "assumptions": _assumptions(plan, facts, stopped),
        "not_covered": NOT_COVERED
        + [f"published metric computed from private rows: {m}" for m in facts.nonprivate_metrics],
    }


def sentence(plan: Plan, epsilon: float, facts: RunFacts) -> str:
    """The promise in words; epsilon is rounded up."""
    noun = "record" if plan.unit == "record" else f"user (at most {plan.max_rows_per_unit} rows each)"
    shown = math.ceil(epsilon * 1000) / 1000
    text = (
        f"Training was ({shown:g}, {plan.delta:g})-differentially private for each {noun} of "
        f"{facts.data.get('name', 'the data')}: whoever sees the model can tell whether one {plan.unit} took part only "
        f"as well as that allows, under {ADJACENCY[plan.adjacency].format(unit=plan.unit)}."
    )
    if plan.noise == "fast":
        text += " That would hold if the noise were ideal; 'fast' noise was used, whose distance from it is not known."
    if facts.nonprivate_metrics:
        text += f" Metrics published outside this promise: {', '.join(facts.nonprivate_metrics)}."
    return text


def _apart(plan: Plan) -> str:
    """How units are kept apart, and what is left of it if all float rounding errors of a draw pointed one way."""
    assert plan.mechanism is not None
    worst, slack = COUPLING * plan.expected_batch_size, 0.75 * plan.mechanism.sensitivity_slack
    place = "inside" if worst <= slack else "beyond"
    return (
        "model check before training; kernels round a row's gradient by its place and neighbours in a batch: on "
        f"ordinary rows in float32 on a CPU {worst:.1e} C were measured for a draw if all errors pointed one way, "
        f"{place} the {slack:.1e} C set aside. That is a measurement, not a worst case: rows of wild scale can do more"
    )


def _assumptions(plan: Plan, facts: RunFacts, stopped: bool) -> list[dict[str, str]]:
    held = [
        ("each unit is in each draw independently with probability q", "own Poisson sampler on the keystream"),
        ("q, the divisor and the number of steps are public constants", "compiled into the plan before data was read"),
        ("a unit moves a clipped sum by at most C(1+s)", f"engine '{facts.engine}', float class '{facts.float_class}'"),
        ("a unit's gradient does not depend on other units", _apart(plan)),
        ("noise is Gaussian with the planned deviation and never reused", NOISE[plan.noise]),
        ("AES-256 is a pseudo-random permutation", "assumed"),
        ("settings were not tuned on these private rows without charge", "assumed; the user's word"),
    ]
    if plan.unit == "user":
        held.append(("data.unit_column names each person once", "assumed; the user's word"))
    if stopped:
        held.append(("the moment of stopping looked only at what was released", "assumed; see privacy/stopping.py"))
        held.append(("epsilon as a function of when the run stopped", "holds with at most twice the stated delta"))
    return [{"claim": claim, "held_by": by} for claim, by in held]
