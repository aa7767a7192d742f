"""What a data set is called in the quarantine: keyed digests of its rows, one under each secret that is at hand.

Runs that a ledger counts use its secret, so that an account's data sets can be quarantined by name. Others, and every
refusal of a gate, use a secret of the user's own room as well, so that ``ledger.uri=none`` is no way around.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dptrain.data.manifest import SALT_BYTES, manifest_digest
from dptrain.data.source import Rows
from dptrain.durable import create_once, make_folder
from dptrain.errors import ConfigError
from dptrain.signing import home

if TYPE_CHECKING:
    from dptrain.privacy.ledger import Ledger

GIVEN = "given"
"""Key of a digest that somebody typed, when no ledger at hand knows it."""


@dataclass(frozen=True)
class NamedRows:
    """Rows that are about to be trained on, and the digests that name them; each further one is a pass over them."""

    rows: Rows
    """As they are identified: capped, before any feature map (``training/stages.py``)."""
    ledger: Ledger | None = None
    """That counts the run; None where none does."""
    digest: str | None = None
    """Under the ledger's secret, where it was made already."""

    def known(self) -> dict[str, str]:
        """Digest -> key, without a pass over the rows."""
        return {} if self.ledger is None or self.digest is None else {self.digest: ledger_key(self.ledger)}

    def all(self) -> dict[str, str]:
        """Digest -> key, under the run's ledger and the user's own secret, which is made where there is none."""
        secret = own_secret()
        return self._counted() | {manifest_digest(self.rows, secret): own_key(secret)}

    def under(self, keys: Collection[str]) -> dict[str, str]:
        """Digest -> key, as far as digests made with these keys need it.

        A digest made in another ledger is compared where that one is the user's own ``ledger.db``; other ledgers are
        not at hand, and what was quarantined by their digests alone is not found here.

        Raises:
            ConfigError: digests were made with a secret of the user's own room that is not there any more.
        """
        found = self._counted()
        own = {key for key in keys if key.startswith("home:")}
        if own or (GIVEN in keys and _file().exists()):
            secret = own_secret(make=False)
            if own - {own_key(secret)}:
                remedy = "restore it from a copy; until then nothing is trained"
                raise ConfigError("quarantine", _file(), "is not the secret that digests were made with", remedy)
            found[manifest_digest(self.rows, secret)] = own_key(secret)
        others = {key for key in keys if key == GIVEN or key.startswith("ledger:")} - set(found.values())
        return found | self._in_own_ledger(others) if others else found

    def _counted(self) -> dict[str, str]:
        if self.ledger is None or self.digest is not None:
            return self.known()
        return {manifest_digest(self.rows, self.ledger.secret): ledger_key(self.ledger)}

    def _in_own_ledger(self, keys: set[str]) -> dict[str, str]:
        from dptrain.privacy.ledger import default_uri, open_ledger
        from dptrain.privacy.ledger_store import LedgerStore

        if not LedgerStore(default_uri()).exists():
            return {}
        ledger = open_ledger(None, create=False)
        try:
            key = ledger_key(ledger)
            wanted = key in keys or GIVEN in keys
            return {manifest_digest(self.rows, ledger.secret): key} if wanted else {}
        finally:
            ledger.close()


def ledger_key(ledger: Ledger) -> str:
    """Names a ledger's secret."""
    return f"ledger:{ledger.id}"


def own_key(secret: bytes) -> str:
    """Names a secret of the user's own room, without saying what it is."""
    return f"home:{hashlib.sha256(b'dptrain.quarantine ' + secret).hexdigest()[:32]}"


def own_secret(make: bool = True) -> bytes:
    """The secret (32 bytes) of ``quarantine.secret`` in the user's own room (mode 0600).

    Args:
        make: whether one is made where there is none.

    Raises:
        ConfigError: it is not there, cannot be made or read, is readable by others, or has another length.
    """
    file = _file()
    try:
        if make and not file.exists():
            _make(file)
        found, loose = file.read_bytes(), file.stat().st_mode & 0o077
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError("quarantine", file, f"cannot be used ({reason})", "restore it, or mend its rights") from error
    if loose:
        raise ConfigError("quarantine", file, "can be read by others", f"chmod 600 {file}")
    if len(found) != SALT_BYTES:
        raise ConfigError("quarantine", file, f"does not hold {SALT_BYTES} bytes", "restore it from a copy")
    return found


def _file() -> Path:
    return home() / "quarantine.secret"


def _make(file: Path) -> None:
    make_folder(file.parent)
    create_once(file, secrets.token_bytes(SALT_BYTES))
