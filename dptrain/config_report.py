"""Settings of ``dptrain report``."""

from __future__ import annotations

from dataclasses import dataclass

from dptrain.config_tracking import refuse_credentials
from dptrain.errors import ConfigError
from dptrain.ranges import choice as _choice


@dataclass
class ReportConfig:
    """Root of ``dptrain report``."""

    run: str | None = None
    """Folder of a finished run. Give this or ``dataset``."""
    dataset: str | None = None
    """Name of a budget account: the page of everything that was spent on these people."""
    runs: str = "runs"
    """With dataset: folder that the account's runs lie in."""
    ledger_uri: str | None = None
    """With dataset: the ledger; null (``ledger.db`` in DPTRAIN_HOME), ``sqlite:///FILE`` or ``postgresql+psycopg://...``."""
    into: str | None = None
    """With dataset: the page; null for ``budget-NAME.html`` here."""
    tracking_uri: str | None = None
    """Server to copy the page to; a server that only the run folder names is not spoken to."""
    tier: str = "internal"
    """internal (everything, stays in the building) or public (what may be shown)."""

    def __post_init__(self) -> None:
        _choice("tier", self.tier, ["internal", "public"])
        refuse_credentials("ledger_uri", self.ledger_uri)
        if self.run is None and self.dataset is None:
            raise ConfigError("run", None, "is needed", "give run=runs/RUN, or dataset=NAME for a budget account")
        if self.dataset is not None and self.run is not None:
            raise ConfigError("dataset", self.dataset, "run is set too", "ask for one page at a time")
        if self.dataset is not None and self.tier == "public":
            raise ConfigError("tier", self.tier, "an account's page is internal", "leave tier out")
