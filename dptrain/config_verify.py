"""Settings of ``dptrain verify``."""

from __future__ import annotations

from dataclasses import dataclass, field

from dptrain.ranges import choice


@dataclass
class VerifyConfig:
    """Root of ``dptrain verify``."""

    path: str = "???"
    """A release bundle, a run folder that holds one, or a statement file."""
    key: str | None = None
    """Public key file of the one signer to accept; null: your own key and those in ``trusted/``."""
    heads: list[str] = field(default_factory=list)
    """Files that name a later ledger head: statements, or what 'budget show format=json' printed."""
    after: list[str] = field(default_factory=list)
    """Files that name a head, as in ``heads``: a statement that was signed before it is refused as an older one."""
    format: str = "text"
    """text or json, on standard output."""

    def __post_init__(self) -> None:
        choice("format", self.format, ["text", "json"])
