"""Where an account stands: the filter's number, which is enforced, and others beside it, each with what it proves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dptrain.errors import ConfigError
from dptrain.privacy.composition import compose_epsilon
from dptrain.privacy.ledger_state import Account, EntryState, State
from dptrain.privacy.privacy_filter import steps_of

PROVES = {
    "epsilon": "enforced: holds whoever chose the runs by whatever was released before; everything open counts whole",
    "epsilon_settled": "the same rule over what was committed or closed: what can no longer be given back",
    "planned_pld": "holds if every run and its length had been fixed before the first one started; not enforced",
    "odometer": "holds if neither the runs nor the moments they stopped depended on what was released; not enforced",
}
"""What each number of an account is worth, in the words that commands and pages print."""


@dataclass(frozen=True)
class Totals:
    """The numbers of one account; ``PROVES`` says what each is worth."""

    account: str
    limit_epsilon: float
    limit_delta: float
    epsilon: float
    epsilon_settled: float
    remaining: float
    planned_pld: float | None
    """None where it was not asked for, or an entry has no privacy loss distribution (a selection among trials)."""
    odometer: float | None
    entries: list[dict[str, Any]]


def totals_of(state: State, account: Account, pld: bool) -> Totals:
    """The numbers of ``account``; with ``pld``, the two composed ones too (a second or two for hundreds of runs)."""
    entries = [state.entries[number] for number in account.entries]
    return Totals(
        account=account.name,
        limit_epsilon=account.epsilon,
        limit_delta=account.delta,
        epsilon=account.value,
        epsilon_settled=account.value_charged,
        remaining=max(0.0, account.epsilon - account.value),
        planned_pld=_composed(entries, account.delta, planned=True) if pld else None,
        odometer=_composed(entries, account.delta, planned=False) if pld else None,
        entries=[entry.to_json() for entry in entries],
    )


def _composed(entries: list[EntryState], delta: float, planned: bool) -> float | None:
    parts = []
    for entry in entries:
        if entry.event is not None:
            _, step = steps_of(entry.event)
            parts.append((step, entry.planned_steps if planned else entry.charged_steps))
    try:
        return compose_epsilon(parts, delta)
    except ConfigError:
        return None
