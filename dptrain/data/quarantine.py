"""Rows that may not be trained on, by their keyed digest; kept in ``quarantine_file``, named by ``quarantine_names``.

It fails closed: a file that does not hold together, or a secret that is gone, refuses every run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dptrain.data.quarantine_file import SCHEMA, Chain, append_row, place, read_chain
from dptrain.data.quarantine_names import NamedRows
from dptrain.errors import ConfigError

LONGEST_REASON = 500
"""Letters."""


@dataclass(frozen=True)
class Entry:
    """A quarantined digest."""

    digest: str
    key: str
    """Whose secret it was made with: ``ledger:ID``, ``home:ID``, or ``given`` where that is not known."""
    group: str
    """Row, and place in it, of the data set: digests of one group name the same rows, and are released together."""
    since: str
    reason: str
    dataset: str | None
    run: str | None


def entries_of(chain: Chain) -> dict[str, Entry]:
    """Digest -> entry, of everything that is quarantined after the last row.

    Raises:
        ConfigError: a row is of a kind that is not known here; a newer dptrain may have meant it to refuse something.
    """
    found: dict[str, Entry] = {}
    for row in chain.rows:
        if row["kind"] == "quarantine":
            facts = {"since": row["time"], "reason": row["reason"], "dataset": row["dataset"], "run": row["run"]}
            for place_in_row, digests in enumerate(row["sets"], start=1):
                group = f"{row['sequence']}.{place_in_row}"
                found |= {d: Entry(d, key, group, **facts) for d, key in digests.items() if d not in found}
        elif row["kind"] == "release":
            found = {digest: entry for digest, entry in found.items() if digest not in row["digests"]}
        elif row["kind"] != "start":
            problem = f"row {row['sequence']} is of kind '{row['kind']}', which is not known here"
            raise ConfigError("quarantine", place(), problem, "install a newer dptrain")
    return found


def refuse_quarantined(named: NamedRows, name: str) -> None:
    """Refuses rows that are quarantined under any digest that can be made of them here.

    Args:
        named: the rows, and what names them. Where nothing is quarantined they are not looked at.
        name: of the data, for the message.

    Raises:
        ConfigError: they are quarantined; or the file is not what was written; or the secret of its digests is gone.
    """
    entries = entries_of(read_chain())
    if not entries:
        return
    digests = named.under({entry.key for entry in entries.values()})
    if not entries.keys().isdisjoint(digests):
        raise ConfigError("data", name, "these rows are quarantined", "'dptrain data show' says since when and why")


def quarantine(sets: Sequence[dict[str, str]], reason: str, dataset: str | None = None, run: str | None = None) -> None:
    """Adds a row that quarantines data sets; on disk when it returns. Where all of them are quarantined, adds none.

    Args:
        sets: of each data set, every digest that names it -> key it was made with (``Entry.key``).
        reason: why; kept for good.
        dataset: what people call it.
        run: the run whose gate refused it.

    Raises:
        ConfigError: no reason; or the file is not what was written, or cannot be written.
    """
    reason = _reason(reason)

    def row(chain: Chain) -> dict[str, Any] | None:
        known = entries_of(chain).keys()
        if all(digests.keys() <= known for digests in sets):
            return None
        return {"kind": "quarantine", "sets": list(sets), "reason": reason, "dataset": dataset, "run": run}

    append_row(row)


def release(asked: str, reason: str, digests: Iterable[str] = (), dataset: str | None = None) -> None:
    """Adds a row that lets data sets in again; on disk when it returns.

    Args:
        asked: what the user called them, for the refusal.
        reason: why; kept for good.
        digests: any digest of each set; its others are released with it.
        dataset: and everything that was quarantined under this name.

    Raises:
        ConfigError: none of them is quarantined; or as ``quarantine``.
    """
    reason, wanted = _reason(reason), set(digests)

    def row(chain: Chain) -> dict[str, Any]:
        entries = entries_of(chain)
        named = {d for d, entry in entries.items() if d in wanted or (dataset is not None and entry.dataset == dataset)}
        groups = {entries[digest].group for digest in named}
        found = sorted(digest for digest, entry in entries.items() if entry.group in groups)
        if not found:
            raise ConfigError("release", asked, "is not quarantined", "'dptrain data show' lists what is")
        return {"kind": "release", "digests": found, "reason": reason}

    append_row(row)


def standing() -> dict[str, Any]:
    """The quarantine as plain data: what is in it, every row that led there, and the signed head.

    Raises:
        ConfigError: the file is not what was written.
    """
    chain = read_chain()
    entries = sorted(entries_of(chain).values(), key=lambda entry: (entry.since, entry.group, entry.digest))
    return {
        "schema": SCHEMA,
        "file": str(place()),
        "quarantined": [asdict(entry) for entry in entries],
        "history": chain.rows,
        "head": None if chain.head is None else chain.head.to_json(),
    }


def _reason(text: str) -> str:
    if not text.strip() or len(text) > LONGEST_REASON:
        raise ConfigError("reason", text[:60], f"does not have 1 to {LONGEST_REASON} letters", "say why: it is kept")
    return text.strip()
