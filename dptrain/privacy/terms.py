"""The terms of a promise: the public facts that everything else in a statement follows from.

They are taken from a compiled plan when a statement is made, and from the statement's own fields when it is verified.
Both then go through the same derivations (``guarantee.py``, ``statement_words.py``), so a field that does not follow
from the terms shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dptrain.privacy.mechanism import DPSGD
from dptrain.privacy.plan import NOISE_RESERVE, Plan
from dptrain.privacy.selection import trials_from
from dptrain.privacy.started import Started, started_from


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What was fixed before a private row was read, and how many steps were then taken."""

    mechanism: DPSGD
    """Sampling rate, noise, clipping, planned steps, what is released beside them, and the law of trials."""
    data_name: str
    unit: str
    max_rows: int
    adjacency: str
    public_size: int
    noise: str
    delta: float
    expected_batch_size: float
    steps_done: int
    engine: str
    float_class: str
    nonprivate_metrics: tuple[str, ...] = ()
    tuning: dict[str, Any] | None = None
    counted: bool = False
    """Whether a ledger counts other runs on the same data."""
    start: Started | None = None
    """What the model was before; None where it began at random."""

    @property
    def stopped(self) -> bool:
        """Whether the run ended before its plan did."""
        return self.steps_done < self.mechanism.steps

    @property
    def claim(self) -> str:
        """Which rule the claimed epsilon comes from."""
        return "stopped_early" if self.stopped else "planned"

    @property
    def priced_delta(self) -> float:
        """Delta left for the mechanism after the noise sampler's reserve."""
        return self.delta * (1.0 - NOISE_RESERVE)


def terms_of_plan(
    plan: Plan,
    *,
    data_name: str,
    steps_done: int,
    engine: str,
    float_class: str,
    nonprivate_metrics: list[str],
    tuning: dict[str, Any] | None,
    counted: bool,
    start: Started | None = None,
) -> Terms:
    """The terms of a private plan and of a run that took ``steps_done`` of its steps."""
    assert plan.mechanism is not None
    return Terms(
        mechanism=plan.mechanism,
        data_name=data_name,
        unit=plan.unit,
        max_rows=plan.max_rows_per_unit,
        adjacency=plan.adjacency,
        public_size=plan.public_size,
        noise=plan.noise,
        delta=plan.delta,
        expected_batch_size=plan.expected_batch_size,
        steps_done=steps_done,
        engine=engine,
        float_class=float_class,
        nonprivate_metrics=tuple(nonprivate_metrics),
        tuning=tuning,
        counted=counted,
        start=start,
    )


def terms_of_statement(statement: dict[str, Any]) -> Terms:
    """The terms that a statement's own fields name; the statement fits its schema and promises something.

    Raises:
        ConfigError: an event or a law of trials in it is outside the closed schema of ``accounting``, or what it says
            of its start does not add up.
    """
    mechanism, sampling = statement["mechanism"], statement["sampling"]
    named = DPSGD(
        sampling_rate=sampling["rate"],
        noise_multiplier=mechanism["noise_multiplier"],
        steps=sampling["steps_planned"],
        clipping_norm=mechanism["clipping_norm"],
        sensitivity_slack=mechanism["sensitivity_slack"],
        divisor=mechanism["divisor"],
        beside=tuple(mechanism["beside"]),
        trials=None if mechanism["trials"] is None else trials_from(mechanism["trials"]),
    )
    return Terms(
        mechanism=named,
        data_name=statement["dataset"]["name"],
        unit=statement["unit"]["kind"],
        max_rows=statement["unit"]["max_rows"],
        adjacency=statement["adjacency"]["relation"],
        public_size=statement["dataset"]["public_size"],
        noise=statement["randomness"]["noise"],
        delta=statement["guarantee"]["delta"],
        expected_batch_size=sampling["expected_batch_size"],
        steps_done=sampling["steps_done"],
        engine=mechanism["engine"],
        float_class=mechanism["float_class"],
        nonprivate_metrics=tuple(statement["scope"]["nonprivate_metrics"]),
        tuning=statement["tuning"],
        counted=statement["composition"] is not None,
        start=started_from(statement),
    )
