"""Settings of the data gate, and of ``dptrain data``: what rows must be like, and which rows may not be trained on.

Every figure here is declared from public knowledge. One that is read off the private rows would give them away through
the config, which is public.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from dptrain.config_tracking import refuse_credentials
from dptrain.errors import ConfigError
from dptrain.ranges import choice, number


@dataclass
class GateConfig:
    """What the private rows must be like before they are trained on. What is null is not checked."""

    mode: str = "observe"
    """``observe`` (checks, and goes on), ``enforce`` (rows that fail are quarantined and refused) or ``off`` (checks
    nothing; what is quarantined stays refused)."""
    input_low: float | None = None
    """Pictures and sources of your own: least value of an input, in the source's own unit (shipped pictures: 0)."""
    input_high: float | None = None
    """The same: largest value, above ``input_low`` (shipped pictures: 1)."""
    max_outside_share: float | None = None
    """Largest share, in [0, 1], of a column's cells outside of its declared bounds or categories (tables), or of rows
    with a value outside of ``input_low`` and ``input_high`` (others; null counts as 0 there)."""
    max_null_share: float | None = None
    """Largest share, in [0, 1], of a column's cells that are missing (tables), or of rows that hold a NaN (others)."""
    whole_numbers: list[str] = field(default_factory=list)
    """Tables: numeric columns of data.columns whose numbers must be whole."""
    label_reference: list[float] | None = None
    """Classification: the public share of each class, in the order of the class names; each in [0, 1], sum 1."""
    max_label_distance: float = 0.1
    """With ``label_reference``: largest total variation distance, in [0, 1], of the rows' shares from it: half the sum
    of the differences, so 0.1 lets a tenth of the rows be of other classes."""
    max_duplicate_share: float | None = None
    """Largest share, in [0, 1], of rows whose input and target, byte for byte, occurred in a row before."""
    max_rows_per_unit: int | None = None
    """Most rows that one unit may bring, at least 1, counted before privacy.max_rows_per_unit leaves any out."""

    def __post_init__(self) -> None:
        choice("gate.mode", self.mode, ["observe", "enforce", "off"])
        for name in ("max_outside_share", "max_null_share", "max_label_distance", "max_duplicate_share"):
            number(f"gate.{name}", getattr(self, name), low=0, high=1)
        number("gate.max_rows_per_unit", self.max_rows_per_unit, low=1)
        number("gate.input_low", self.input_low, low=-math.inf)
        number("gate.input_high", self.input_high, low=-math.inf)
        if self.input_low is not None and self.input_high is not None and self.input_low >= self.input_high:
            raise ConfigError("gate.input_low", self.input_low, "is not below gate.input_high", "set low below high")
        self._check_reference()

    def _check_reference(self) -> None:
        if self.label_reference is None:
            return
        for share in self.label_reference:
            number("gate.label_reference", share, low=0, high=1)
        if not math.isclose(math.fsum(self.label_reference), 1.0, abs_tol=1e-6):
            raise ConfigError(
                "gate.label_reference", self.label_reference, "does not sum to 1", "give the share of every class"
            )


@dataclass
class QuarantineConfig:
    """Root of ``dptrain data``."""

    dataset: str | None = None
    """quarantine, release: every data set of this budget account. Give this or ``digest``."""
    digest: str | None = None
    """quarantine, release: keyed digest of one data set, 64 hexadecimal digits ('budget show' or a run's gate.json)."""
    reason: str = ""
    """quarantine, release: why; kept for good, so name no person."""
    uri: str | None = None
    """The ledger that knows the account: null (``ledger.db`` in DPTRAIN_HOME), ``sqlite:///FILE`` or
    ``postgresql+psycopg://...``."""

    def __post_init__(self) -> None:
        refuse_credentials("uri", self.uri)
        if self.dataset is not None and self.digest is not None:
            raise ConfigError("digest", self.digest, "dataset is set too", "give one of them")
        if self.digest is not None and not (len(self.digest) == 64 and set(self.digest) <= set("0123456789abcdef")):
            raise ConfigError("digest", self.digest[:80], "is not a digest", "give its 64 hexadecimal digits")
