"""Master keys of sealed files: 32 bytes from a file, an environment variable, or a program's output.

A master key encrypts nothing but data keys (``seal.py``), so a new master key means new headers, not new data. Written
as 64 hexadecimal digits. The user's own lies in ``sealing.key`` of ``DPTRAIN_HOME`` (0600, made on first use).
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from dptrain.durable import create_once, make_folder
from dptrain.errors import ConfigError
from dptrain.signing import home

NAME = "sealing.key"
PATIENCE = 60.0
"""Seconds that a program may take to say a key."""


@dataclass(frozen=True)
class MasterKey:
    """A master key in memory. Its ``repr`` shows its name only."""

    id: str
    """``seal:`` and 32 hexadecimal digits of a hash: says which key, and nothing about it."""
    _secret: bytes

    def __repr__(self) -> str:
        return f"MasterKey({self.id})"

    def __reduce__(self) -> str:
        raise TypeError("a master key is secret and cannot be pickled or copied")

    def wrapping_key(self) -> bytes:
        """The key (32 bytes) that data keys are encrypted with. Source: HKDF, RFC 5869."""
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        return HKDF(SHA256(), 32, None, b"dptrain.seal/1 envelope").derive(self._secret)


def master_key(secret: bytes) -> MasterKey:
    """The master key of 32 secret bytes."""
    if len(secret) != 32:
        raise ValueError(f"a master key has 32 bytes, not {len(secret)}")
    return MasterKey("seal:" + hashlib.sha256(b"dptrain.seal/1 key id" + secret).hexdigest()[:32], secret)


def own_file() -> Path:
    """The user's own sealing key."""
    return home() / NAME


def load_key(source: str | None, create: bool = False) -> MasterKey:
    """The master key that a setting names.

    Args:
        source: None, ``file:PATH``, ``env:NAME`` or ``command:PROGRAM ARGUMENTS`` (run without a shell).
        create: makes the user's own key where there is none (source None alone).

    Raises:
        ConfigError: it is not there, readable by others, or no key. The key is never quoted.
    """
    if source is None:
        file = own_file()
        if create and not file.exists():
            write_key(file, secrets.token_bytes(32))
        return _read_file(file)
    kind, _, rest = source.partition(":")
    if kind == "file":
        return _read_file(Path(rest).expanduser())
    if kind == "env":
        if rest not in os.environ:
            raise ConfigError("sealing key", source, "is not set in the environment", "set it, or name another source")
        return _parsed(os.environ[rest], source)
    if kind == "command":
        return _parsed(_output(rest), source)
    raise ConfigError("sealing key", "(not shown)", "is no source of a key", "use file:PATH, env:NAME or command:...")


def key_ring(source: str | None) -> dict[str, MasterKey]:
    """Key id -> every key that may open a file: the one named, and the user's own retired ones where none is named."""
    ring = [] if source is None and not own_file().exists() else [load_key(source)]
    if source is None:
        ring += [_read_file(file) for file in sorted(home().glob(f"{NAME}.*")) if not file.name.endswith(".tmp")]
    return {key.id: key for key in ring}


def write_key(file: Path, secret: bytes) -> None:
    """Writes a key file (0600), synced; one that is there already stays."""
    try:
        make_folder(file.parent)
        create_once(file, secret.hex().encode() + b"\n")
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError("sealing key", file, f"cannot be made ({reason})", "set DPTRAIN_HOME") from error


def _read_file(file: Path) -> MasterKey:
    try:
        text, loose = file.read_bytes(), file.stat().st_mode & 0o077
    except FileNotFoundError as error:
        remedy = "restore it from a copy; where nothing was sealed yet, the first training run makes it"
        raise ConfigError("sealing key", file, "is not there", remedy) from error
    except OSError as error:
        raise ConfigError(
            "sealing key", file, f"cannot be read ({error.strerror})", "restore it from a copy"
        ) from error
    if loose:
        raise ConfigError("sealing key", file, "can be read by others", f"chmod 600 {file}")
    return _parsed(text.decode("ascii", "replace"), str(file))


def _output(command: str) -> str:
    try:
        words = shlex.split(command)
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise ConfigError("sealing key", "command:...", f"cannot be run ({type(error).__name__})", "mend it") from error
    if done.returncode:
        raise ConfigError("sealing key", "command:...", f"ended with exit code {done.returncode}", "run it by hand")
    return done.stdout


def _parsed(text: str, place: str) -> MasterKey:
    digits = text.strip()
    if re.fullmatch(r"[0-9a-fA-F]{64}", digits) is None:
        raise ConfigError("sealing key", place, "is not 64 hexadecimal digits", "make one: openssl rand -hex 32")
    return master_key(bytes.fromhex(digits))
