"""A run's admission, as the run holds it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reservation:
    """A run's admission. ``prior`` and ``total``: epsilon at which the account stood before it, and with it."""

    entry: int
    account: str
    run_id: str
    purpose: str
    planned_steps: int
    committed_steps: int
    attempt: int
    prior: float
    total: float
