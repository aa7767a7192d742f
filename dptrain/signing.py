"""Who said it: Ed25519 signatures over canonical JSON, for ledger heads and statements.

The key is made on first use in the user's own room (``DPTRAIN_HOME``, else ``~/.dptrain``; mode 0600 in a folder of
mode 0700). Public keys of other signers are trusted once they lie in its folder ``trusted`` as ``NAME.pub``.
Source: RFC 8032 (Ed25519).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dptrain.durable import create_once, make_folder
from dptrain.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_VARIABLE = "DPTRAIN_SIGNING_KEY"
"""Environment variable that names another key file."""


def home() -> Path:
    """The user's own room: ledger, signing key, trusted keys. ``DPTRAIN_HOME``, else ``~/.dptrain``."""
    given = os.environ.get("DPTRAIN_HOME")
    return Path(given).expanduser() if given else Path.home() / ".dptrain"


def canonical(value: Any) -> bytes:
    """The one byte string that a JSON value is signed as: sorted keys, no spaces, ASCII, no NaN.

    >>> canonical({"b": 1, "a": [0.5, None]})
    b'{"a":[0.5,null],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def key_id(public_key: str) -> str:
    """A short name of a public key (its Base64 text): ``ed25519:`` and 32 hexadecimal digits of its SHA-256."""
    return f"ed25519:{hashlib.sha256(_raw(public_key)).hexdigest()[:32]}"


@dataclass(frozen=True)
class Signer:
    """A private key in memory. Its ``repr`` shows the public half only."""

    public_key: str
    """Base64 of the 32 raw bytes."""
    _private: Ed25519PrivateKey

    def __repr__(self) -> str:
        return f"Signer({self.key_id})"

    @property
    def key_id(self) -> str:
        """Name of the key."""
        return key_id(self.public_key)

    def sign(self, message: bytes) -> str:
        """Base64 of the 64-byte signature of ``message``."""
        return base64.b64encode(self._private.sign(message)).decode()


def load_signer(path: Path | None = None) -> Signer:
    """The signer of a key file, which is made when absent.

    Args:
        path: PEM file (PKCS #8, not encrypted); None for ``DPTRAIN_SIGNING_KEY``, else ``signing.key`` in ``home()``.

    Raises:
        ConfigError: the file is not an Ed25519 key, is readable by others, or cannot be made.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    file = path or _default_path()
    if not file.exists():
        _make_key(file)
    try:
        text = file.read_bytes()
        loose = file.stat().st_mode & 0o077
    except OSError as error:
        raise ConfigError("signing key", file, f"cannot be read ({error.strerror})", "mend its permissions") from error
    if loose:
        raise ConfigError("signing key", file, "can be read by others", f"chmod 600 {file}")
    try:
        private = load_pem_private_key(text, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError("signing key", file, "is not a PEM private key", "restore it from a copy") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigError("signing key", file, "is not an Ed25519 key", f"name another file in {KEY_VARIABLE}")
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return Signer(base64.b64encode(public).decode(), private)


def signature_holds(public_key: str, signature: str, message: bytes) -> bool:
    """Whether ``signature`` is this key's signature of ``message``; malformed keys and signatures never hold.

    Neither does a second spelling of a right one: Base64 has spare bits that a decoder passes over.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = Ed25519PublicKey.from_public_bytes(_raw(public_key))
        raw = base64.b64decode(signature, validate=True)
        if base64.b64encode(raw).decode() != signature:
            return False
        key.verify(raw, message)
    except (InvalidSignature, ValueError, TypeError, ConfigError):
        return False
    return True


def trusted_keys() -> dict[str, str]:
    """Key id -> public key of every signer trusted here: the user's own key and ``trusted/*.pub``.

    A file that holds no public key is refused, not skipped.
    """
    found = {}
    if _default_path().exists():
        own = load_signer()
        found[own.key_id] = own.public_key
    for file in sorted((home() / "trusted").glob("*.pub")):
        public = file.read_text(encoding="utf-8").strip()
        try:
            found[key_id(public)] = public
        except ConfigError as error:
            raise ConfigError("trusted key", file, "is not a public key", "remove it or mend it") from error
    return found


def _default_path() -> Path:
    given = os.environ.get(KEY_VARIABLE)
    return Path(given).expanduser() if given else home() / "signing.key"


def _make_key(file: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    text = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        make_folder(file.parent)
        create_once(file, text)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            "signing key", file, f"cannot be made ({reason})", f"set {KEY_VARIABLE} or DPTRAIN_HOME"
        ) from error


def _raw(public_key: str) -> bytes:
    try:
        raw = base64.b64decode(public_key, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise ConfigError(
            "public key", str(public_key)[:60], "is not Base64", "give the text of a .pub file"
        ) from error
    if len(raw) != 32 or base64.b64encode(raw).decode() != public_key:
        raise ConfigError("public key", str(public_key)[:60], "is not an Ed25519 key", "give the text of a .pub file")
    return raw
