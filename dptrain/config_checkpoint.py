"""Settings of resume states, and of ``dptrain keys``."""

from __future__ import annotations

from dataclasses import dataclass

from dptrain.errors import ConfigError
from dptrain.ranges import number


@dataclass
class CheckpointConfig:
    """What a run keeps of itself so that it can go on after a stop or a kill. Never a noise key, never a draw."""

    every: float = 300.0
    """Seconds between resume states, at least 0; 0 keeps none, and such a run cannot be resumed."""
    keep: int = 2
    """Number of resume states kept, the newest ones; at least 1."""
    key: str | None = None
    """Where the sealing key comes from: null (``sealing.key`` in DPTRAIN_HOME, made on first use), ``file:PATH``,
    ``env:NAME`` or ``command:PROGRAM ARGUMENTS`` (its output). Never taken from a run folder: to resume, name it
    again."""
    seal_bundle: bool = False
    """Whether the release bundle's weights are sealed, too, under the same key. The statement stays readable, and
    verifies without the key; loading, auditing or exporting takes it."""

    def __post_init__(self) -> None:
        number("checkpoint.every", self.every, low=0)
        number("checkpoint.keep", self.keep, low=1)
        check_source("checkpoint.key", self.key)


@dataclass
class KeysConfig:
    """Root of ``dptrain keys``."""

    key: str | None = None
    """show: the sealing key; rotate: the old one. null, ``file:PATH``, ``env:NAME`` or ``command:...``."""
    to: str | None = None
    """rotate: the new key; null makes one (with key=null only)."""
    runs: str = "runs"
    """Folder of runs whose sealed files are shown, or get a new header."""

    def __post_init__(self) -> None:
        check_source("key", self.key)
        check_source("to", self.to)


def check_source(name: str, source: str | None) -> None:
    """Refuses what is no source of a key. A key itself is refused without being shown: configs are stored."""
    if source is None:
        return
    kind, _, rest = source.partition(":")
    if kind not in ("file", "env", "command") or not rest.strip():
        raise ConfigError(name, "(not shown)", "is no source of a key", "use file:PATH, env:NAME or command:PROGRAM")
