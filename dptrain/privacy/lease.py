"""How many steps one commit declares: a commit waits for the disk, a short step cannot bear that each time."""

from __future__ import annotations

import math

OVERHEAD = 0.05
"""Largest share of training time that commits may take."""
LONGEST = 1000


def lease_size(step_seconds: float, commit_seconds: float, overhead: float = OVERHEAD) -> int:
    """Steps of a lease, so that commits take at most ``overhead`` of the time; at most 1,000.

    A process that is killed stays charged for its whole lease: at most this many steps too many, never one too few.

    Args:
        step_seconds: how long a step takes, above 0.
        commit_seconds: how long a commit takes (``docs/results/ledger.md`` measures 4 to 10 ms).

    >>> lease_size(0.2, 0.008), lease_size(0.01, 0.008), lease_size(1e-5, 0.008)
    (1, 16, 1000)
    """
    if step_seconds <= 0:
        return LONGEST
    return max(1, min(LONGEST, math.ceil(commit_seconds / (overhead * step_seconds))))
