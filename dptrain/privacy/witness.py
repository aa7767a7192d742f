"""The newest head of every ledger seen from here, kept outside of the ledger: it shows that an old copy was restored.

``heads/<ledger_id>.json`` in the user's own room is rewritten after every row, and read before the ledger is. A copy
from yesterday then ends before the head that is remembered, or goes another way from it, and is refused. Whoever can
rewrite both the ledger and this folder is not stopped by it; heads in statements and in MLflow, held elsewhere, are.

A look at a ledger moves this memory forward, and does nothing else to it: a file that holds no head stays as it is.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from dptrain.errors import ConfigError
from dptrain.privacy.chain import Head
from dptrain.signing import home


def folder() -> Path:
    """Where heads are remembered."""
    return home() / "heads"


def recall(ledger_id: str) -> Head | None:
    """The newest head seen of a ledger; None where none was."""
    found = _read(folder() / f"{ledger_id}.json")
    return found[0] if found else None


def recall_with_place(ledger_id: str) -> tuple[Head, str] | None:
    """The newest head seen of a ledger, and where that ledger lay; None where none was."""
    return _read(folder() / f"{ledger_id}.json")


def blank(kind: str = "") -> Path | None:
    """A remembered head whose content is gone (a power cut); None where every one is whole, or cannot be read at all.

    What a blank one named is not known: it may be the ledger that is missing.

    Args:
        kind: beginning of the ledger's id ("quarantine-"); without it, ledgers alone.
    """
    for file in sorted(folder().glob(f"{kind}*.json")):
        with suppress(ConfigError):
            if bool(kind) == file.name.startswith("quarantine-") and _read(file) is None:
                return file
    return None


def is_blank(ledger_id: str) -> bool:
    """Whether the head of this ledger was remembered, and its content is gone."""
    file = folder() / f"{ledger_id}.json"
    with suppress(ConfigError):
        return file.is_file() and _read(file) is None
    return False


def notice(head: Head, place: str) -> None:
    """Keeps the head of a ledger that was only looked at: where none was kept, an older one, or from another place.

    What is there and holds no head is left to the next row: a look never repairs what may be a sign.
    """
    file = folder() / f"{head.ledger_id}.json"
    try:
        known = _read(file)
    except ConfigError:
        return
    is_news = not file.exists() if known is None else (known[0].sequence, known[1]) != (head.sequence, place)
    if is_news:
        remember(head, place)


def remember(head: Head, place: str) -> None:
    """Keeps a head, unless a newer one of the same ledger is kept already.

    Renamed into place, not synced (a second sync would double what a commit costs): after a power cut the head of a
    moment before may stand here, which is as true, or a file without content, which counts as none.
    A folder that cannot be written costs the witness, never the run: the row itself is on disk by now.
    """
    file = folder() / f"{head.ledger_id}.json"
    temporary = file.with_name(f".{head.ledger_id}.{os.getpid()}.tmp")
    try:
        known = _read(file)
        if known is not None and known[0].sequence > head.sequence:
            return
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = {"place": place, "own": _is_own(place), "head": head.to_json()}
        temporary.write_text(json.dumps(kept), encoding="utf-8")
        os.replace(temporary, file)
    except (OSError, ConfigError):
        with suppress(OSError):
            temporary.unlink()


def newest_of(kind: str) -> Head | None:
    """The head remembered of the one file of its kind ("quarantine-") that a room has, wherever the room lay then: a
    room that was moved, or is reached by another path, still knows what it held."""
    for file in sorted(folder().glob(f"{kind}*.json")):
        found = _read(file)
        if found is not None:
            return found[0]
    return None


def lost(place: str) -> Head | None:
    """The head of a ledger that once lay at ``place``, by what is remembered here. The room's own ledger is known as
    such, wherever the room lay then: it may have been moved, or be reached by another path."""
    for file in sorted(folder().glob("*.json")):
        found = _read(file)
        if found is not None and (found[1] == place or (_is_own(place) and _kept_as_own(file))):
            return found[0]
    return None


def _is_own(place: str) -> bool:
    """Whether this is the ledger of the room itself, where no other is named."""
    return place == f"sqlite:///{(home() / 'ledger.db').absolute()}"


def _kept_as_own(file: Path) -> bool:
    return json.loads(file.read_text(encoding="utf-8")).get("own") is True


def _read(file: Path) -> tuple[Head, str] | None:
    try:
        text = file.read_text(encoding="utf-8")
        if not text.strip("\0"):  # the power went before the content was on disk: no head, as if it had been removed
            return None
        kept = json.loads(text)
        return Head.from_json(kept["head"]), str(kept["place"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            "ledger head", file, "cannot be read", "remove it: rollback is then not noticed until the next row"
        ) from error
