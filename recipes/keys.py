"""Keys of sealed files: which key opens which file, and a new key for all; signers to believe no more. Prints JSON.

dptrain keys show
dptrain keys rotate runs=runs
dptrain keys revoke ed25519:... reason="left the team"     refuse all that this signing key signed; a .pub file will do
python recipes/keys.py rotate key=env:OLD_KEY to=env:NEW_KEY
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from dptrain.cli import guarded
from dptrain.config_checkpoint import KeysConfig
from dptrain.errors import ConfigError, suggest


def show(config: KeysConfig) -> dict[str, Any]:
    """The key's name, and the sealed files with the names of the keys that open them. No key is shown."""
    from dptrain.checkpoint.seal import sealed_under
    from dptrain.checkpoint.sealing_key import load_key

    if config.to is not None:
        raise ConfigError("to", config.to, "makes no difference to 'show'", "leave it out")
    files = {str(file): sealed_under(file) for file in sealed_files(config)}
    return {"key": load_key(config.key).id, "files": files}


def rotate(config: KeysConfig) -> dict[str, Any]:
    """Puts every sealed file under a new key by writing its header anew; the data stays as it is.

    May be killed at any moment and run again. The user's own old key is kept as ``sealing.key.retired-...`` in
    DPTRAIN_HOME, for files that lie elsewhere: remove it once none is left.
    """
    from dptrain.checkpoint.rotation import finish, new_key
    from dptrain.checkpoint.seal import rotate as rotate_file
    from dptrain.checkpoint.sealing_key import key_ring

    new = new_key(config.key, config.to)
    ring = key_ring(config.key)
    ring[new.id] = new
    rotated = [str(file) for file in sealed_files(config) if rotate_file(file, ring, new)]
    retired = finish() if config.to is None else None
    return {"key": new.id, "rotated": rotated, "retired": None if retired is None else str(retired)}


def revoke(words: list[str]) -> None:
    """Believes a signing key no more, for good: a key id, its public text, a .pub file or a name in trusted/."""
    from dptrain.revoked_keys import revoke as revoke_key

    reason = "".join(word.removeprefix("reason=") for word in words if word.startswith("reason="))
    named = [word.removeprefix("key=") for word in words if not word.startswith("reason=")]
    if len(named) != 1:
        raise ConfigError("key", " ".join(named), "one key is needed", "give what 'dptrain verify' printed")
    print(json.dumps(vars(revoke_key(named[0], reason)), indent=2))


VERBS = {"show": show, "rotate": rotate}
"""Verb -> what carries it out; it returns what is printed."""


def sealed_files(config: KeysConfig) -> list[Path]:
    """Sealed files of all runs in the folder."""
    folder = Path(config.runs).expanduser()
    if not folder.is_dir():
        raise ConfigError("runs", config.runs, "no such folder", "name the folder that holds the runs: runs=...")
    return sorted(file for file in folder.rglob("*.sealed") if file.is_file() and ".tmp" not in file.parent.name)


def run(verb: str, config: KeysConfig) -> dict[str, Any]:
    """Carries out one verb and prints what came of it."""
    found = VERBS[verb](config)
    print(json.dumps(found, indent=2))
    return found


def main(arguments: list[str]) -> None:
    """Entry of ``dptrain keys``: a verb, then settings."""
    from dptrain.compose import compose
    from dptrain.teach import command_help

    if not arguments or arguments[0] in ("-h", "--help") or "--help" in arguments:
        print(
            f"{__doc__}\nverbs: {', '.join(VERBS)}, revoke\n\nkeys\n" + command_help("keys").split("\nkeys\n", 1)[1],
            end="",
        )
    elif arguments[0] == "revoke":
        revoke(arguments[1:])
    elif arguments[0] not in VERBS:
        raise ConfigError("keys", arguments[0], "is not a verb", suggest(arguments[0], [*VERBS, "revoke"]))
    else:
        run(arguments[0], compose("keys", arguments[1:]))


if __name__ == "__main__":
    sys.exit(guarded("keys", sys.argv[1:]))
