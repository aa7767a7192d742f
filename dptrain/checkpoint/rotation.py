"""A new sealing key in the place of the old one: begun, carried out file by file, ended; safe to be killed between."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from dptrain.checkpoint.sealing_key import MasterKey, load_key, own_file, write_key
from dptrain.durable import sync
from dptrain.errors import ConfigError


def new_key(source: str | None, to: str | None) -> MasterKey:
    """The key to rotate to: the one named, else a fresh one that waits as ``sealing.key.next`` until all is done.

    Raises:
        ConfigError: there is no old key, or the new one would have to be made elsewhere than in DPTRAIN_HOME.
    """
    old = load_key(source)
    if to is not None:
        new = load_key(to)
        if new.id == old.id:
            raise ConfigError("to", to, "is the old key", "name another, or make one: openssl rand -hex 32")
        return new
    if source is not None:
        raise ConfigError("to", None, "is needed where key is named", "name the new key: to=env:NEW_KEY")
    waiting = _next()
    if not waiting.exists():
        write_key(waiting, secrets.token_bytes(32))
    return load_key(f"file:{waiting}")


def finish() -> Path:
    """Puts the fresh key in the place of the user's own, which is kept beside it; returns where."""
    own, waiting = own_file(), _next()
    retired = own.with_name(f"{own.name}.retired-{load_key(None).id.partition(':')[2][:16]}")
    if not retired.exists():
        os.link(own, retired)
    os.replace(waiting, own)
    sync(own.parent)
    return retired


def _next() -> Path:
    return own_file().with_name(f"{own_file().name}.next")
