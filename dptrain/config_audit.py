"""Settings of ``dptrain audit``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from dptrain.config_checkpoint import check_source
from dptrain.config_tracking import refuse_credentials
from dptrain.errors import ConfigError
from dptrain.ranges import number as _number

UNITS_OF_TIME = {"s": 1.0, "m": 60.0, "h": 3600.0}
LONGEST = 30 * 24 * 3600.0


@dataclass
class AuditSettings:
    """How the attack is carried out."""

    fpr: list[float] = field(default_factory=lambda: [0.01, 0.001])
    """False-positive rates at which the true-positive rate is wanted, each in (0, 1)."""
    confidence: float = 0.95
    """Coverage of the intervals, in [0.5, 1)."""
    level: float = 0.01
    """Largest chance that the claim check rejects a run that did what its statement says, in (0, 0.5]."""
    key: str | None = None
    """Source of the sealing key (the canaries' record, sealed weights), as ``checkpoint.key``; never taken from a run
    folder."""
    max_rows: int = 20_000
    """Most member rows (and non-member rows) scored, drawn by seed; at least 10."""
    budget: str | None = None
    """Time for reference models, such as 90s, 10m or 2h, from 1 s to 30 days; null: none are trained."""
    narrow: float = 0.01
    """Width, in (0, 1], of the between-model interval of the TPR at the first rate at which training stops early."""

    groups: list[str] | None = None
    """What the most exposed are sorted by: class, unit_size, names of declared columns; null: all there are."""

    def __post_init__(self) -> None:
        for rate in self.fpr:
            _number("audit.fpr", rate, low=0, high=1, low_open=True, high_open=True)
        _number("audit.confidence", self.confidence, low=0.5, high=1, high_open=True)
        _number("audit.level", self.level, low=0, high=0.5, low_open=True)
        check_source("audit.key", self.key)
        seconds_of(self.budget)
        _number("audit.narrow", self.narrow, low=0, high=1, low_open=True)
        _number("audit.max_rows", self.max_rows, low=10)


@dataclass
class AuditConfig:
    """Root of ``dptrain audit``."""

    run: str = "???"
    """Folder of a finished run."""
    audit: AuditSettings = field(default_factory=AuditSettings)
    key: str | None = None
    """Public key file of the one signer to accept; null: your own key and those that you trust."""
    imports: list[str] = field(default_factory=list)
    """The user's own files, where the run used some; never taken from the run folder."""
    tracking_uri: str | None = None
    """Server to copy results to; a server that only the run folder names is not spoken to."""
    ledger_uri: str | None = None
    """Ledger that is told of the audit; null: the one that the run used, unless that is a server."""
    seed: int = 0

    def __post_init__(self) -> None:
        refuse_credentials("ledger_uri", self.ledger_uri)


def seconds_of(budget: str | None) -> float | None:
    """Seconds of a time budget; None where there is none.

    >>> seconds_of("1.5m")
    90.0

    Raises:
        ConfigError: it is no number with s, m or h behind it, or is out of range.
    """
    if budget is None:
        return None
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([smh])", budget)
    if found is None:
        raise ConfigError("audit.budget", budget, "is not a time", "write a number and s, m or h, as in 90s, 10m or 2h")
    seconds = float(found[1]) * UNITS_OF_TIME[found[2]]
    if not 1 <= seconds <= LONGEST:
        raise ConfigError("audit.budget", budget, "must be from 1 s to 30 days", "choose a time in that range")
    return seconds
