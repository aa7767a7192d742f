"""Settings of the budget: which account a run pays from, and what ``dptrain budget`` is asked."""

from __future__ import annotations

from dataclasses import dataclass, field

from dptrain.config_tracking import refuse_credentials
from dptrain.ranges import choice, number


@dataclass
class LedgerConfig:
    """Which account pays, and where it is kept."""

    uri: str | None = None
    """null (``ledger.db`` in DPTRAIN_HOME), ``sqlite:///FILE``, ``postgresql+psycopg://USER@HOST/DATABASE``, or
    ``none``: no ledger is kept, and the statement says that other runs are not counted."""
    account: str | None = None
    """Name of the account; null: the one that knows these rows, else the name of the data."""
    same_people: bool = True
    """Rows not seen before hold people of the account of that name. false: others, who need their own account."""
    epsilon_limit: float | None = None
    """Makes the account with this limit on first use, in (0, 1000]; null: it must exist."""
    delta_limit: float | None = None
    """Delta of an account made on first use, in (0, 1); null: privacy.delta."""
    lease_steps: int | None = None
    """Steps declared by one commit, at least 1; null: as many as keep commits under 5 % of the time."""

    def __post_init__(self) -> None:
        number("ledger.epsilon_limit", self.epsilon_limit, low=0, high=1000, low_open=True)
        number("ledger.delta_limit", self.delta_limit, low=0, high=1, low_open=True, high_open=True)
        number("ledger.lease_steps", self.lease_steps, low=1)
        refuse_credentials("ledger.uri", self.uri)


@dataclass
class BudgetConfig:
    """Root of ``dptrain budget``."""

    dataset: str | None = None
    """Name of the account."""
    uri: str | None = None
    """The ledger: null (``ledger.db`` in DPTRAIN_HOME), ``sqlite:///FILE`` or ``postgresql+psycopg://...``."""
    epsilon: float | None = None
    """create, limit: the account's limit, in (0, 1000]; forecast: size of the runs asked about."""
    delta: float | None = None
    """create: the account's delta, in (0, 1), fixed for good."""
    unit: str = "record"
    """create: whose presence is protected, ``record`` or ``user``."""
    sampling_rate: float | None = None
    """Shape of runs, forecast: null is that of the newest run; create: the filter is made for it. In (0, 1]."""
    steps: int | None = None
    """Shape of runs, as above: steps, at least 1."""
    reason: str = ""
    """limit, freeze, unfreeze, close: why; kept in the ledger."""
    note: str = ""
    """create: free text, kept in the ledger."""
    run: str | None = None
    """close: id of the dead run."""
    digest: str | None = None
    """create, link: manifest digest of a data set (64 hexadecimal digits)."""
    account: str | None = None
    """link: the account that its people belong to."""
    relation: str = "version"
    """link: ``same``, ``version`` or ``subset``."""
    heads: list[str] = field(default_factory=list)
    """verify: files that name a later head: statements, or what 'budget show format=json' printed."""
    format: str = "text"
    """text or json."""

    def __post_init__(self) -> None:
        number("epsilon", self.epsilon, low=0, high=1000, low_open=True)
        number("delta", self.delta, low=0, high=1, low_open=True, high_open=True)
        choice("unit", self.unit, ["record", "user"])
        number("sampling_rate", self.sampling_rate, low=0, high=1, low_open=True)
        number("steps", self.steps, low=1)
        choice("format", self.format, ["text", "json"])
        refuse_credentials("uri", self.uri)
